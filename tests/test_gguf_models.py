"""Models in GGUF files: the weights that come back, their types, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgpt
from microgpt import _kernels as k
from microgpt.errors import CheckpointError, ConfigError, FormatError, TokenizerError
from microgpt.io import gguf_writer
from microgpt.io.ggml import NAMED
from microgpt.io.gguf import GgufFile
from microgpt.models import gguf
from microgpt.models.decoder import Decoder
from microgpt.models.families import FAMILIES
from microgpt.models.families.gguf import GGUF
from microgpt.models.gguf import halve, interleave, save_gguf
from microgpt.models.gguf_config import facts_of
from microgpt.models.gguf_types import FILE_TYPES, OUTPUT, base_of
from microgpt.models.pooling import Pooling
from microgpt.models.presets import MODELS
from microgpt.models.pretrained import load_decoder
from microgpt.nn import Ctx, Layout
from microgpt.tokenizers.char import CharTokenizer
from microgpt.tokenizers.ids import IdsTokenizer
from tests.format_tools import GPT2, LLAMA, a_model, same
from tests.gguf_cases import LLAMA3, LONG, NOT_OURS, OTHERS, REFUSED, YARN
from tests.tiny_families import TINY, VOCAB

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_tied_biases": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama_head_dim": ("llama", {"head_dim": 12, "num_key_value_heads": 1}),
    "llama_linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 99.0, "factor": 2.5}}),
    "llama_yarn": ("llama", {"rope_parameters": YARN}),
    "llama_llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama_longrope": ("llama", {"rope_parameters": LONG}),
    "gpt2": ("gpt2", {}),
    "gpt2_untied": ("gpt2", {"tie_word_embeddings": False, "n_inner": 96}),
}
IDS = list(range(1, 20))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_model_comes_back_from_gguf(tmp_path: Path, name: str) -> None:
    family, settings = VARIANTS[name]
    model = a_model(family, **settings)
    save_gguf(model, tmp_path / "m.gguf", "f32")
    back = load_decoder(tmp_path / "m.gguf")
    assert same(model, back)
    logits = [microgpt.LanguageModel(each, IdsTokenizer(61)).logits(IDS) for each in (model, back)]
    if name in ("llama_llama3", "llama_longrope"):  # frequencies as float32 factors: a rounding of angles up to 24
        assert back.config.blocks[0].mixer.rope.scaling.kind == "longrope"
        assert 0.0 < np.abs(logits[0] - logits[1]).max() <= 24 * 2.0**-24 * 100
    else:
        assert back.config == model.config
        assert np.array_equal(*logits)
    found = GgufFile(tmp_path / "m.gguf")
    assert found.metadata["general.architecture"] == family
    assert ("output.weight" in found.tensors) != model.config.tie_embeddings


def tiny(name: str) -> Decoder:
    """A model of OTHERS (or of TINY) with weights that differ from each other."""
    family, settings = {**TINY, **NOT_OURS, **OTHERS}[name]
    model = Decoder(FAMILIES.get(family).read(settings), seed=1)
    rng = np.random.default_rng(2)
    for parameter in model.parameters():
        parameter.numpy()[...] += (0.1 * rng.standard_normal(parameter.shape)).astype(np.float32)
    return model


def test_every_family_of_the_table_is_tried() -> None:
    configs = [FAMILIES.get(family).read(settings) for family, settings in OTHERS.values()]
    tried = {(config.family, facts_of(config).arch) for config in configs}
    assert tried == {(facts.family or name, facts.arch) for name, facts in GGUF.items()}


@pytest.mark.filterwarnings("ignore:.*pooler")
@pytest.mark.parametrize("name", sorted(OTHERS.keys() - {"falcon_h1_multipliers"}))
def test_other_families_come_back_from_gguf(tmp_path: Path, name: str) -> None:
    model = tiny(name)
    save_gguf(model, tmp_path / "m.gguf", "f32")
    back = load_decoder(tmp_path / "m.gguf")
    # Norms of 1 + weight are stored with the one: a rounding of 2^-24. Logarithms of decays (below 2 here) are
    # stored as decays: two roundings of those, two of the logarithm. Everything else has its bits.
    for key, value in model.arrays().items():
        if key.startswith("pooler"):  # which GGUF has not
            assert key not in back.arrays()
            continue
        bound = 8 * 2.0**-24 if "a_log" in key else 2.0**-23 if "norm" in key else 0.0
        assert np.abs(back.arrays()[key] - value).max() <= bound, key
    ctx = Ctx(Layout.packed([len(IDS)]))
    states = [each.hidden(k.from_numpy(np.array(IDS, np.int32)), ctx) for each in (model, back)]
    logits = [each.logits(x).numpy() for each, x in zip((model, back), states, strict=True)]
    # Frequencies and scales are float32 in a file: a rounding of angles up to 24; logits are below 10.
    assert np.abs(logits[0] - logits[1]).max() <= 24 * 2.0**-24 * 10
    save_gguf(back, tmp_path / "again.gguf", "f32")
    assert load_decoder(tmp_path / "again.gguf").config == back.config


def test_multipliers_go_into_weights(tmp_path: Path) -> None:
    """Falcon-H1's: a file is read as the same function without them."""
    model = tiny("falcon_h1_multipliers")
    save_gguf(model, tmp_path / "m.gguf", "f32")
    back = load_decoder(tmp_path / "m.gguf")
    assert back.config.embed_scale == back.config.logit_scale == 1.0
    factors = {"embed.weight": 3.0, "head": 0.7, "blocks.1.mixer.left.b.weight": 1.2 * 0.8,
               "blocks.2.mixer.right.k.weight": 1.3 * 0.6, "blocks.0.ffn.down.weight": 1.4}  # fmt: skip
    for name, factor in factors.items():
        far = np.abs(back.arrays()[name] - model.arrays()[name] * factor).max()
        assert far <= 2.0**-23 * np.abs(back.arrays()[name]).max(), name
    logits = [microgpt.LanguageModel(each, IdsTokenizer(VOCAB)).logits(IDS) for each in (model, back)]
    assert 0 < np.abs(logits[0] - logits[1]).max() <= 64 * 2.0**-24 * np.abs(logits[0]).max()
    tied = Decoder(FAMILIES.get("falcon_h1").read({**OTHERS["falcon_h1_multipliers"][1], "tie_word_embeddings": True}))
    with pytest.raises(ConfigError, match=r"lm_head_multiplier: expected 3.0 as embedding_multiplier .*, got 0.7"):
        save_gguf(tied, tmp_path / "tied.gguf", "f32")


def test_rwkv7_lies_as_llama_cpp_wants_it(tmp_path: Path) -> None:
    model = tiny("rwkv7")
    save_gguf(model, tmp_path / "m.gguf", "q8_0")
    found, own = GgufFile(tmp_path / "m.gguf"), model.arrays()
    shares = found.array("blk.1.time_mix_lerp_fused.weight")
    assert shares.shape == (6, 1, 1, 128)
    for i, name in enumerate("rwkvag"):
        assert np.array_equal(shares[i, 0, 0], own[f"blocks.1.mixer.x_{name}"])
    assert np.array_equal(found.array("blk.2.time_mix_r_k.weight"), own["blocks.2.mixer.r_k"].reshape(-1))
    assert np.array_equal(found.array("blk.2.time_mix_w1.weight"), own["blocks.2.mixer.w1.weight"])
    # v's share of the first block, which has none, has the sizes of the rate's
    shapes = {name: info.shape for name, info in found.tensors.items()}
    for i in range(3):
        assert shapes[f"blk.0.time_mix_v{i}.weight"] == shapes[f"blk.0.time_mix_a{i}.weight"]
    assert shapes["blk.0.time_mix_v1.weight"] == (6, 128) and shapes["blk.1.time_mix_v1.weight"] == (5, 128)
    kinds = {name: info.kind.name for name, info in found.tensors.items()}
    assert kinds["blk.1.time_mix_lerp_fused.weight"] == kinds["blk.1.time_mix_w2.weight"] == "F32"
    assert kinds["blk.1.time_mix_g1.weight"] == "F16" and kinds["blk.1.time_mix_key.weight"] == "Q8_0"
    assert found.metadata["rwkv7.attention.head_count"] == 0 and found.metadata["rwkv7.wkv.head_size"] == 64
    # bare ids stand for a vocabulary that is not read
    rewritten(tmp_path / "m.gguf", {"tokenizer.ggml.model": "rwkv", "tokenizer.ggml.tokens": ["<s>", "\\x00"],
                                    "tokenizer.ggml.eos_token_id": 0})  # fmt: skip
    with pytest.warns(UserWarning, match="m.gguf: its vocabulary .RWKV's, a trie of bytes. is not read"):
        words = microgpt.load(tmp_path / "m.gguf").tokenizer
    assert words.encode("3 1 4") == [3, 1, 4] and words.eos_id == 0
    # files without that share are read too
    save_gguf(model, tmp_path / "m.gguf", "f32")
    rewritten(tmp_path / "m.gguf", {}, {f"blk.0.time_mix_v{i}.weight": None for i in range(3)})
    assert same(load_decoder(tmp_path / "m.gguf"), model)


def test_blocks_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    model = tiny("qwen3_5")
    save_gguf(model, tmp_path / "m.gguf", "f32")
    rewritten(tmp_path / "m.gguf", {"qwen35.block_count": 4, "qwen35.nextn_predict_layers": 1},
              {"blk.3.nextn.eh_proj.weight": np.ones((4, 4), np.float32)})  # fmt: skip
    assert same(load_decoder(tmp_path / "m.gguf"), load_decoder_of(model, tmp_path))
    for ahead in (-1, 4, 2**40):
        rewritten(tmp_path / "m.gguf", {"qwen35.nextn_predict_layers": ahead})
        with pytest.raises(ConfigError, match="nextn_predict_layers: expected a whole number from 0 to 3"):
            load_decoder(tmp_path / "m.gguf")


def load_decoder_of(model: Decoder, folder: Path) -> Decoder:
    """What a file of the model gives."""
    save_gguf(model, folder / "plain.gguf", "f32")
    return load_decoder(folder / "plain.gguf")


def test_a_list_of_recurrent_layers_says_which_attend(tmp_path: Path) -> None:
    model = tiny("qwen3_5")
    save_gguf(model, tmp_path / "m.gguf", "f32")
    listed = {
        "qwen35.full_attention_interval": None,
        "qwen35.attention.recurrent_layers": np.array([True, True, False]),
    }
    rewritten(tmp_path / "m.gguf", listed)
    assert load_decoder(tmp_path / "m.gguf").config == load_decoder_of(model, tmp_path).config


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_would_compute_otherwise_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"GGUF's .*{REFUSED[name]}"):
        model = Decoder(FAMILIES.get(TINY[name][0]).read(TINY[name][1])) if name in OTHERS else tiny(name)
        save_gguf(model, tmp_path / "m.gguf", "f32")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*pooler")
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("apertus", {"xielu.alpha_p": np.ones(3, np.float32)}, "'xielu.alpha_p' expected 2 numbers, one a block"),
        ("apertus", {"xielu.alpha_n": None}, "missing metadata key 'xielu.alpha_n'"),
        ("apertus", {"xielu.alpha_n": "x"}, "'xielu.alpha_n' expected ndarray or float, got str"),
        ("apertus", {"xielu.beta": 0.25}, "'xielu.beta': expected 0.5 for every block"),
        ("mpt", {"mpt.attention.max_alibi_bias": 16.0}, "max_alibi_bias: expected 8, got 16"),
        ("mpt", {"mpt.attention.max_alibi_bias": None}, "max_alibi_bias: expected 8, got 0"),
        ("olmo", {"olmo.attention.layer_norm_epsilon": 1e-6}, "layer_norm_epsilon: expected 1e-05, got 1e-06"),
        ("minicpm", {"minicpm.logit_scale": 0.0}, "impossible metadata for minicpm"),
        ("falcon", {"falcon.attention.head_count_kv": 3}, "kv_heads.*: expected a divisor"),
        ("gemma2", {"gemma2.attention.head_count": 0}, "impossible metadata for gemma2|heads"),
        ("ministral3", {"mistral3.rope.scaling.factor": 0.0}, "rope.scaling.factor"),
        ("rwkv7", {"rwkv7.token_shift_count": 1}, "token_shift_count': expected 2, of the mixer and the feed-forward"),
        ("rwkv7", {"rwkv7.attention.gate_lora_rank": None}, "gate_lora_rank': expected a whole number"),
        ("rwkv7", {"rwkv7.wkv.head_size": 48}, "embedding_length': expected a multiple of .*head_size 48, got 128"),
        ("rwkv7", {"rwkv7.attention.layer_norm_epsilon": None}, "impossible metadata for rwkv7"),
        ("qwen2", {"qwen2.rope.dimension_count": 4}, "partial rotary positions have no GGUF form"),
        ("bert", {"bert.attention.causal": True}, "bert.attention.causal: expected False, got True"),
        ("modernbert", {"modern-bert.attention.causal": None}, "causal: expected False, got None"),
        ("modernbert", {"modern-bert.attention.sliding_window_pattern": np.ones(3, np.bool_)},
         "layer_types: expected 4 names, one a layer, got 3"),
        ("modernbert", {"modern-bert.attention.sliding_window_pattern": "x"}, "impossible metadata for modern-bert"),
    ],
)  # fmt: skip
def test_impossible_metadata_of_families(tmp_path: Path, name: str, change: dict[str, Any], message: str) -> None:
    save_gguf(tiny(name), tmp_path / "m.gguf", "f32")
    rewritten(tmp_path / "m.gguf", change)
    with pytest.raises((FormatError, ConfigError), match=message) as caught:
        load_decoder(tmp_path / "m.gguf")
    assert "m.gguf" in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*pooler")
def test_an_encoder_has_what_llama_cpp_asks_for(tmp_path: Path) -> None:
    save_gguf(tiny("bert"), tmp_path / "m.gguf", "f16")
    found = GgufFile(tmp_path / "m.gguf")
    assert found.metadata["bert.attention.causal"] is False
    assert found.metadata["tokenizer.ggml.token_type_count"] == 2
    kinds = {name: info.kind.name for name, info in found.tensors.items()}
    assert kinds["token_types.weight"] == kinds["position_embd.weight"] == "F32" and kinds["token_embd.weight"] == "F16"
    assert {name for name in kinds if name.startswith("blk.1.attn_output")} == {
        "blk.1.attn_output.weight", "blk.1.attn_output.bias", "blk.1.attn_output_norm.weight",
        "blk.1.attn_output_norm.bias",
    }  # fmt: skip
    save_gguf(tiny("modernbert"), tmp_path / "m.gguf", "f32")
    found = GgufFile(tmp_path / "m.gguf")
    assert found.metadata["modern-bert.attention.sliding_window"] == 6
    assert found.metadata["modern-bert.attention.sliding_window_pattern"] == 3
    assert "blk.0.attn_norm.weight" not in found.tensors and "blk.1.attn_norm.weight" in found.tensors
    # llama.cpp takes the first half through the activation: that of Wi's rows which transformers does.
    gate = tiny("modernbert").arrays()["blocks.0.ffn.gate.weight"]
    assert np.array_equal(found.array("blk.0.ffn_up.weight")[: len(gate)], gate)
    # Windows layer by layer, and in all layers
    rewritten(
        tmp_path / "m.gguf", {"modern-bert.attention.sliding_window_pattern": np.array([0, 1, 0, 1], np.uint8) > 0}
    )
    assert [block.mixer.window for block in load_decoder(tmp_path / "m.gguf").config.blocks] == [None, 4, None, 4]
    rewritten(tmp_path / "m.gguf", {"modern-bert.attention.sliding_window_pattern": 0})
    assert {block.mixer.window for block in load_decoder(tmp_path / "m.gguf").config.blocks} == {4}


@pytest.mark.filterwarnings("ignore:.*pooler")
def test_pooling_goes_along(tmp_path: Path) -> None:
    for kind, number in (("mean", 1), ("cls", 2), ("lasttoken", 3)):
        pooling = Pooling(kind, True, 9, True)
        model = microgpt.LanguageModel(tiny("bert"), CharTokenizer("abc"), pooling)
        back = microgpt.load(model.export(tmp_path / "m.gguf", "f32"))
        assert back.pooling == pooling
        assert np.array_equal(back.embed(["ab", "cab"]), model.embed(["ab", "cab"]))
        assert GgufFile(tmp_path / "m.gguf").metadata["bert.pooling_type"] == number
        assert microgpt.load(back.save(tmp_path / "folder")).pooling == pooling
    for change in ({"microgpt.pooling.normalize": None}, {"bert.pooling_type": 0}):
        rewritten(tmp_path / "m.gguf", change)
        found = microgpt.load(tmp_path / "m.gguf").pooling
        assert found == (Pooling("lasttoken", False, 9, True) if "bert.pooling_type" not in change else None)
    for change in ({"bert.pooling_type": 4}, {"bert.pooling_type": "1"}, {"microgpt.pooling.max_tokens": 0}):
        model.export(tmp_path / "m.gguf", "f32")
        rewritten(tmp_path / "m.gguf", change)
        with pytest.raises(FormatError, match=r"m\.gguf: .*: expected"):
            microgpt.load(tmp_path / "m.gguf")
    for wrong in (Pooling("max"), Pooling("mean", others=("module Dense",))):
        with pytest.raises(ConfigError, match=r"GGUF has no form for a model with (pooling max|module Dense)"):
            microgpt.LanguageModel(tiny("bert"), CharTokenizer("abc"), wrong).export(tmp_path / "n.gguf")
    # a decoder that makes vectors too
    model = microgpt.LanguageModel(a_model(), CharTokenizer("abc"), Pooling("lasttoken"))
    assert np.array_equal(microgpt.load(model.export(tmp_path / "m.gguf", "f32")).embed(["ab"]), model.embed(["ab"]))


def test_rows_of_q_and_k_lie_pair_by_pair(tmp_path: Path) -> None:
    rows = np.arange(16).reshape(16, 1)
    assert interleave(rows, 2, 4)[:, 0].tolist() == [0, 2, 1, 3, *range(4, 8), 8, 10, 9, 11, *range(12, 16)]
    assert np.array_equal(halve(interleave(rows, 2, 4), 2, 4), rows)
    assert interleave(rows, 2, 8)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
    assert np.array_equal(halve(interleave(rows, 2, 8), 2, 8), rows)
    model = a_model(attention_bias=True)
    save_gguf(model, tmp_path / "m.gguf", "f32")
    found, own = GgufFile(tmp_path / "m.gguf"), model.arrays()
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    assert np.array_equal(found.array("blk.1.attn_q.weight")[:8], own["blocks.1.mixer.q.weight"][order])
    assert np.array_equal(found.array("blk.1.attn_k.bias")[8:16], own["blocks.1.mixer.k.bias"][8 + np.array(order)])
    assert np.array_equal(found.array("blk.1.attn_v.weight"), own["blocks.1.mixer.v.weight"])


def test_gpt2_has_one_tensor_for_q_k_and_v(tmp_path: Path) -> None:
    model = a_model("gpt2")
    save_gguf(model, tmp_path / "m.gguf", "f16")
    found, own = GgufFile(tmp_path / "m.gguf"), model.arrays()
    fused = np.concatenate([own[f"blocks.0.mixer.{x}.weight"] for x in "qkv"])
    assert np.array_equal(found.array("blk.0.attn_qkv.weight"), fused.astype(np.float16))
    kinds = {name: info.kind.name for name, info in found.tensors.items()}
    assert (
        kinds["position_embd.weight"] == kinds["blk.0.attn_qkv.bias"] == "F32" and kinds["token_embd.weight"] == "F16"
    )


@pytest.mark.parametrize("kind", FILE_TYPES)
def test_types_of_a_file(tmp_path: Path, kind: str) -> None:
    """Each weight is what its type makes of it, and the sizes are those of the types."""
    model = a_model(hidden_size=256, intermediate_size=512)
    size = save_gguf(model, tmp_path / "m.gguf", kind)
    found = GgufFile(tmp_path / "m.gguf")
    assert size == (tmp_path / "m.gguf").stat().st_size and found.metadata["general.file_type"] == FILE_TYPES[kind]
    for name, info in found.tensors.items():
        base = base_of(kind).name
        wanted = OUTPUT.get(base, base) if name == "output.weight" else MIXED.get(kind, {}).get(name, base)
        assert info.kind.name == ("F32" if len(info.shape) == 1 else wanted), name
    back = load_decoder(tmp_path / "m.gguf")
    assert back.dtype == ("bfloat16" if kind == "bf16" else "float32")
    # Half a step of an integer of so many bits over the whole range; scales that blocks share are rounded: twice.
    bits = {"f32": 23, "f16": 11, "bf16": 8, "q8_0": 7, "q6_k": 5, "iq4_nl": 2, "iq4_xs": 2, "mxfp4": 1}
    error_bits = (bits[kind] if kind in bits else int(kind[1]) - 1) - (base_of(kind).weights == 256)
    for name, value in model.arrays().items():
        error = np.abs(back.arrays()[name].astype(np.float32) - value).max() / np.abs(value).max()
        assert error == 0.0 if kind == "f32" else error <= 2.0**-error_bits, name


# Of two layers, the second of which is the last third.
MIXED = {
    "q3_k_m": {f"blk.{i}.{part}.weight": kind for i, down in ((0, "Q3_K"), (1, "Q4_K"))
               for part, kind in (("attn_v", "Q5_K"), ("attn_output", "Q4_K"), ("ffn_down", down))},
    "q4_k_m": {"blk.1.attn_v.weight": "Q6_K", "blk.1.ffn_down.weight": "Q6_K"},
    "q5_k_m": {"blk.1.attn_v.weight": "Q6_K", "blk.1.ffn_down.weight": "Q6_K"},
}  # fmt: skip


def test_rows_that_fill_no_block_take_another_type(tmp_path: Path) -> None:
    model = a_model(hidden_size=40, intermediate_size=256)
    with pytest.warns(UserWarning, match="rows of 14 tensors do not fill blocks of 256; they are written as F16"):
        save_gguf(model, tmp_path / "m.gguf", "q4_k")
    kinds = {name: info.kind.name for name, info in GgufFile(tmp_path / "m.gguf").tensors.items()}
    assert kinds["blk.0.ffn_down.weight"] == "Q4_K" and kinds["blk.0.ffn_up.weight"] == "F16"
    model = a_model(hidden_size=64, intermediate_size=256)
    for kind, other in (("q4_k", "Q5_0"), ("q6_k", "Q8_0")):
        with pytest.warns(UserWarning, match=f"they are written as .*{other}"):
            save_gguf(model, tmp_path / "m.gguf", kind)
        assert GgufFile(tmp_path / "m.gguf").tensors["blk.0.ffn_up.weight"].kind.name == other


def test_the_tokenizer_goes_along(tmp_path: Path) -> None:
    tokenizer = CharTokenizer("abc")
    model = microgpt.LanguageModel(a_model(), tokenizer)
    back = microgpt.load(model.export(tmp_path / "m.gguf", type="F32"))
    assert back.tokenizer.encode("cab", add_bos=True) == tokenizer.encode("cab", add_bos=True) == [0, 3, 1, 2]
    assert back.tokenizer.eos_id == 0 and same(back.decoder, model.decoder)
    found = GgufFile(tmp_path / "m.gguf")
    assert found.metadata["general.name"] == "m" and found.metadata["tokenizer.ggml.model"] == "gpt2"


def test_ids_where_there_is_no_vocabulary(tmp_path: Path) -> None:
    model = microgpt.LanguageModel(a_model(), IdsTokenizer(61, 1, 2))
    back = microgpt.load(model.export(tmp_path / "m.gguf", type="f32"))
    assert isinstance(back.tokenizer, IdsTokenizer) and (back.tokenizer.bos_id, back.tokenizer.eos_id) == (1, 2)
    assert back.tokenizer.encode(" 5 60\n0") == [5, 60, 0] and back.tokenizer.decode([5, 1, 60]) == "5 60 "
    text = back.generate("7 8", temperature=0.0, max_tokens=3, ignore_eos=True)
    assert back.tokenizer.encode(text.text) == text.ids and len(text.ids) == 3
    for bad in ("61", "-1", "x", "1.5", "٣", "9" * 30):
        with pytest.raises(TokenizerError, match="came without a vocabulary: expected ids from 0 to 60"):
            back.tokenizer.encode(bad)
    assert IdsTokenizer(61, 70, -1).bos_id is None


def rewritten(path: Path, change: dict[str, Any], tensors: dict[str, Any] | None = None) -> None:
    """The file with other metadata (None removes a key) and tensors (likewise)."""
    found = GgufFile(path)
    metadata = {key: value for key, value in {**found.metadata, **change}.items() if value is not None}
    arrays = {**{name: found.array(name).copy() for name in found.tensors}, **(tensors or {})}
    plan = [gguf_writer.Planned(name, value.shape, NAMED["F32"], lambda value=value: value)  # type: ignore[misc]
            for name, value in arrays.items() if value is not None]  # fmt: skip
    gguf_writer.write(path, metadata, plan)


@pytest.mark.parametrize(
    ("change", "tensors", "message"),
    [
        (
            {"general.architecture": "lama"},
            {},
            r"unknown architecture 'lama'.*did you mean 'llama'.*known: .*gpt2.*llama",
        ),
        ({"general.architecture": None}, {}, "missing metadata key 'general.architecture'"),
        ({"general.architecture": 5}, {}, "'general.architecture' expected str, got int"),
        ({"llama.block_count": None}, {}, "block_count: expected a whole number from 1 to 1024, got None"),
        ({"llama.block_count": 513}, {}, r"missing \['blk.2.attn_norm.weight'"),
        ({"llama.block_count": 2**31}, {}, "block_count: expected a whole number from 1 to 1024"),
        ({"llama.block_count": 1}, {}, r"unexpected \['blk.1.attn_k.weight'"),
        ({"llama.attention.head_count": 0}, {}, "heads"),
        ({"llama.attention.head_count": 3}, {}, "kv_heads.*: expected a divisor|divisible"),
        (
            {"llama.attention.head_count_kv": [2, 1]},
            {},
            "metadata 'llama.attention.head_count_kv' expected int, got array",
        ),
        ({"llama.attention.key_length": 7}, {}, "even width|head_dim"),
        ({"llama.embedding_length": 2**31 - 1}, {}, "width: expected a whole number"),
        ({"llama.embedding_length": 64}, {}, r"embed.weight expected \(61, 64\), got \(61, 32\)"),
        ({"llama.feed_forward_length": 2**20}, {}, "parameters, the files 22,496"),
        ({"llama.context_length": 2**25}, {}, "max_positions"),
        ({"llama.rope.freq_base": float("nan")}, {}, "rope_theta"),
        ({"llama.rope.freq_base": 0.0}, {}, "rope_theta"),
        ({"llama.rope.freq_base": "x"}, {}, "'llama.rope.freq_base' expected float, got str"),
        ({"llama.attention.layer_norm_rms_epsilon": float("inf")}, {}, "eps"),
        ({"llama.rope.scaling.type": "su"}, {}, "rope.scaling.type 'su': known are none, linear, yarn"),
        ({"split.count": np.uint16(3)}, {}, "one of 3 parts of a model"),
        ({}, {"token_embd.weight": None}, "no tensor 'token_embd.weight'"),
        ({}, {"token_embd.weight": np.zeros((61, 2, 16), np.float32)}, "no tensor 'token_embd.weight' of two axes"),
        (
            {},
            {"blk.0.ffn_up.weight": None, "blk.0.extra": np.zeros(1)},
            r"missing \['blk.0.ffn_up.weight'\]; unexpected",
        ),
        ({}, {"blk.0.attn_q.weight": np.zeros((31, 32), np.float32)}, "rows in pairs for 4 heads"),
        ({}, {"rope_freqs.weight": np.ones(3)}, "long_factor: expected 4 numbers"),
        ({}, {"rope_factors_long.weight": np.ones(4)}, "expected rope_factors_long and rope_factors_short"),
    ],
)
def test_impossible_models_in_gguf(
    tmp_path: Path, change: dict[str, Any], tensors: dict[str, Any], message: str
) -> None:
    path = tmp_path / "m.gguf"
    save_gguf(a_model(), path, "f32")
    rewritten(path, change, tensors)
    with pytest.raises((FormatError, ConfigError, CheckpointError), match=message) as caught:
        load_decoder(path)
    assert "m.gguf" in str(caught.value)


def test_unread_metadata_is_said(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    save_gguf(a_model(), path, "f32")
    rewritten(path, {"llama.attention.sliding_window": 8, "other.key": 1})
    with pytest.warns(UserWarning, match="not understood and ignored: llama.attention.sliding_window"):
        load_decoder(path)


def test_what_gguf_cannot_hold(tmp_path: Path) -> None:
    micro = Decoder(MODELS.get("micro")(61, 16, 1, 2, 8, 0.0))
    cases = [
        (micro, "models of family 'microgpt' have no GGUF form; those of .*gpt2, .*llama.* do"),
        (a_model(hidden_act="gelu"), "GGUF's llama has hidden_act 'silu', this model 'gelu'"),
        (a_model(rope_parameters={**YARN, "truncate": False}), "no form for yarn scaling without truncation"),
        (a_model(rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5}), "partial rotary"),
    ]
    for model, message in cases:
        with pytest.raises(ConfigError, match=message):
            save_gguf(model, tmp_path / "m.gguf", "f32")
    with pytest.raises(ConfigError, match=r"unknown GGUF type.*did you mean 'q4_k'"):
        save_gguf(a_model(), tmp_path / "m.gguf", "q4k")
    with pytest.raises(ConfigError, match=r"a path that ends in \.gguf"):
        microgpt.LanguageModel(a_model(), IdsTokenizer(61)).export(tmp_path / "m.bin")
    assert list(tmp_path.iterdir()) == []


def test_tables_of_families_name_real_keys() -> None:
    """Every key of config.json in a table is one that the family writes."""
    for name, settings in (("llama", LLAMA), ("gpt2", GPT2)):
        config = FAMILIES.get(name).read(settings)
        written, facts = FAMILIES.get(name).write(config), GGUF.get(name)
        assert {*facts.keys.values(), *facts.fixed, *facts.present} <= {*written, "scale_attn_weights"}
        assert gguf.rules_of(config)
