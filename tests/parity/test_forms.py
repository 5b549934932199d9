"""Forms of attention that no dense family of the registry has yet, beside transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from microgpt import _kernels as k
from microgpt.io.names import from_file, to_file
from microgpt.models.config import ModelConfig
from microgpt.models.decoder import Decoder
from microgpt.models.families.common import Reader, read_rope, write_rope
from microgpt.models.families.declare import weight_rules
from microgpt.models.families.llama import NAMES
from microgpt.nn import Ctx, Layout
from microgpt.nn.ffn.mlp import GluSpec
from microgpt.nn.mixers.attention import AttentionSpec
from microgpt.nn.positions import rope_frequencies
from microgpt.nn.rope import RopeScaling, RopeSpec
from microgpt.nn.spec import BlockSpec, NormSpec
from tests.parity import tiny
from tests.tiny_families import LENGTHS, VOCAB, rows, weight


def test_attention_of_gpt_oss():
    """Sinks, biases, YaRN, windows in turn. Its experts are replaced by Llama's feed-forward on both sides."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.llama.modeling_llama import LlamaMLP

    rope = {"rope_type": "yarn", "rope_theta": 150.0, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
            "truncate": False, "original_max_position_embeddings": 8}  # fmt: skip
    config = AutoConfig.for_model(
        "gpt_oss", vocab_size=VOCAB, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, max_position_embeddings=32, sliding_window=5, num_local_experts=2,
        rope_parameters=rope, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()

    class Dense(torch.nn.Module):
        def __init__(self):
            super().__init__()
            config.mlp_bias = False
            self.dense = LlamaMLP(config)

        def forward(self, x):
            return self.dense(x), None

    for layer in model.model.layers:
        layer.mlp = Dense()
    plain = {name: name.replace(".mlp.dense.", ".mlp.") for name, _ in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weight(plain[name], tuple(parameter.shape))))
            if name.endswith("sinks"):
                parameter.add_(1.0)
    want = tiny.logits(model)
    wanted = {plain[name]: value for name, value in tiny.gradients(model).items()}

    yarn = RopeSpec(150.0, scaling=RopeScaling("yarn", 4.0, 8, truncate=False))
    norm = NormSpec("rms", 1e-5, bias=False)
    blocks = tuple(
        BlockSpec(AttentionSpec(4, 12, 2, window=window, rope=yarn, sinks=True), GluSpec(40), norm)
        for window in (5, None)
    )
    ours = Decoder(ModelConfig(VOCAB, 32, 32, blocks, learned_positions=False, tie_embeddings=False, final_norm=norm))
    rules = weight_rules(ours.config, {**NAMES, "mixer.sinks": "self_attn.sinks"}, False, 1, {})
    weights = {plain[name]: p.detach().numpy() for name, p in model.named_parameters()}
    ours.load_arrays(from_file(rules, weights, "reference"))
    tokens, layout = k.from_numpy(np.concatenate(rows())), Layout.packed(LENGTHS)
    got = ours.logits(ours.hidden(tokens, Ctx(layout))).numpy()
    assert np.abs(got - want).max() <= 1e-4
    ours.loss(tokens, k.from_numpy(tiny.targets()), Ctx(layout)).backward()
    found = to_file(rules, {name: p.grad for name, p in ours.named_parameters() if p.grad is not None})
    assert found.keys() == wanted.keys()
    far = {name: np.linalg.norm(found[name] - g) / np.linalg.norm(g) for name, g in wanted.items()
           if not name.endswith("k_proj.bias") or "layers.0" in name}  # fmt: skip
    assert max(far.values()) <= 1e-4, far


@pytest.mark.parametrize(("share", "factor"), [(1.0, 1.0), (0.5, 2.0), (0.3, 8.0)])
def test_proportional_frequencies(share: float, factor: float):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "proportional", "rope_theta": 5000.0, "partial_rotary_factor": share, "factor": factor}
    theirs = LlamaConfig(hidden_size=24, num_attention_heads=1, head_dim=24, rope_parameters=rope)
    frequency, attention = ROPE_INIT_FUNCTIONS["proportional"](theirs, "cpu")
    spec = read_rope(Reader({"rope_parameters": rope}), 24, 100)
    ours, scale = rope_frequencies(spec, 24, 100)
    assert scale == attention == 1.0
    assert (np.abs(ours - frequency.numpy()) <= 16 * 2.0**-23 * ours).all()
    assert read_rope(Reader(write_rope(spec, 24)), 24, 100) == spec
