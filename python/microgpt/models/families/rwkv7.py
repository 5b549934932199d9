"""RWKV-7 in GGUF files. It is no family of config.json: its models are of our own layout, and llama.cpp knows them."""

from __future__ import annotations

from typing import Any

from ...io.names import Packing
from ...nn.checks import require
from ...nn.ffn.rwkv7 import Rwkv7FfnSpec
from ...nn.mixers.rwkv7 import Rwkv7Spec
from ...nn.spec import BlockSpec, NormSpec
from ..config import ModelConfig
from .gguf import GGUF, Gguf, Metadata

KEYS = {
    "context_length": "positions", "embedding_length": "width", "block_count": "layers",
    "feed_forward_length": "hidden", "attention.layer_norm_epsilon": "eps", "wkv.head_size": "head_dim",
    "attention.decay_lora_rank": "decay", "attention.iclr_lora_rank": "rate",
    "attention.value_residual_mix_lora_rank": "value", "attention.gate_lora_rank": "gate",
    "token_shift_count": "shifts", "attention.head_count": "unused",
}  # fmt: skip
SHARES = "rwkvag"  # of the token before, in the order of the file
NAMES = {
    "ffn_norm": "attn_norm_2", "mixer.r": "time_mix_receptance", "mixer.k": "time_mix_key", "mixer.v": "time_mix_value",
    "mixer.o": "time_mix_output", "mixer.norm_weight": "time_mix_ln.weight", "mixer.norm_bias": "time_mix_ln.bias",
    **{f"mixer.{name}{i}": f"time_mix_{name}{i}" for name in "wavg" for i in (1, 2)},
    **{f"mixer.{name}": f"time_mix_{name}.weight" for name in ("w0", "a0", "v0", "k_k", "k_a", "r_k")},
    "ffn.x_k": "channel_mix_lerp_k.weight", "ffn.up": "channel_mix_key", "ffn.down": "channel_mix_value",
}  # fmt: skip
# llama.cpp asks for v's share in the first block too, of the sizes of its rate, and computes nothing with it.
COPIES = {f"blk.0.time_mix_v{i}.weight": f"blk.0.time_mix_a{i}.weight" for i in range(3)}
STEP = 64  # llama.cpp's kernel goes over a head in vectors of so many numbers and leaves wrong sums of a rest


def holds(config: ModelConfig) -> bool:
    """Whether every block is RWKV-7's."""
    return all([layer.kind for layer in block.layers] == ["rwkv7", "rwkv7_ffn"] for block in config.blocks)


def read_gguf(values: Metadata) -> None:
    """The description of a model in our own layout."""
    values.require(values.get("shifts", 2) == 2, "shifts", "2, of the mixer and the feed-forward")
    heads, width, hidden = values.over("width", "head_dim"), values["width"], values.whole("hidden", 1)
    decay, rate, value, gate = (values.whole(name, 1) for name in ("decay", "rate", "value", "gate"))
    norm = NormSpec("layer", values["eps"])
    blocks = [
        BlockSpec(
            Rwkv7Spec(heads, values["head_dim"], decay, rate, value, gate, i == 0), Rwkv7FfnSpec(hidden, width), norm
        )
        for i in range(values["layers"])
    ]
    config = ModelConfig(
        values["vocab_size"], width, values.whole("positions", 1), tuple(blocks), learned_positions=False,
        tie_embeddings=False, final_norm=norm, embed_norm=norm,
    )  # fmt: skip
    values["spec"] = config.to_dict()


def write_gguf(values: dict[str, Any]) -> None:
    """The inverse, of the last block: what other blocks have otherwise is found when it is read again."""
    spec = values.pop("spec")
    block = spec["blocks"][-1]
    mixer = block["mixer"]
    require(mixer["head_dim"] % STEP == 0, "GGUF's rwkv7: head_dim", f"a multiple of {STEP}", mixer["head_dim"])
    values |= {name: mixer[name] for name in ("head_dim", "decay", "rate", "value", "gate")}
    values |= {"positions": spec["max_positions"], "width": spec["width"], "layers": len(spec["blocks"]),
               "hidden": block["ffn"]["width"], "eps": block["norm"]["eps"], "unused": 0}  # fmt: skip


def packings(config: ModelConfig) -> dict[str, Packing]:
    """Shares lie in one tensor of four axes; the bonus is flat."""
    shares = " ".join(f"mixer.x_{name}" for name in SHARES)
    heads = config.blocks[0].mixer.heads
    return {
        shares: Packing(
            lambda parts: parts[0].reshape(len(SHARES), 1, 1, -1), lambda value: [value.reshape(-1)],
            lambda shapes: (len(SHARES), 1, 1, shapes[0][0] // len(SHARES)),
        ),
        "mixer.r_k": Packing(
            lambda parts: parts[0].reshape(-1), lambda value: [value.reshape(heads, -1)],
            lambda shapes: (shapes[0][0] * shapes[0][1],),
        ),
    }  # fmt: skip


GGUF.add("rwkv7", Gguf(
    "rwkv7", KEYS, family="microgpt", holds=holds, rope=False, names=NAMES, packings=packings, copies=COPIES,
    fused={" ".join(f"mixer.x_{name}" for name in SHARES): "time_mix_lerp_fused.weight"}, read=read_gguf,
    write=write_gguf,
))  # fmt: skip
