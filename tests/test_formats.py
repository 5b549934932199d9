"""Models in GGUF files, sharded, MLX and llama2.c forms: the weights that come back, and what is refused."""

from __future__ import annotations

import json
import pickle
import resource
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgpt
from microgpt.errors import CheckpointError, ConfigError, FormatError, TokenizerError
from microgpt.io import gguf_writer, safetensors
from microgpt.io.ggml import NAMED
from microgpt.io.gguf import GgufFile
from microgpt.models import gguf
from microgpt.models.decoder import Decoder
from microgpt.models.gguf import FILE_TYPES, halve, interleave, save_gguf
from microgpt.models.pretrained import copy, load_decoder, open_checkpoint, save_decoder
from microgpt.models.zoo import MODELS
from microgpt.tokenizers.char import CharTokenizer
from microgpt.tokenizers.ids import IdsTokenizer
from tests.format_tools import GPT2, LLAMA, a_model, llama2c, mlx, same, sharded, theirs
from tests.training_tools import python

LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 12}  # fmt: skip
LONG = {"rope_type": "longrope", "rope_theta": 100.0, "original_max_position_embeddings": 8,
        "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 1.5, 2.5, 4.0]}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 3.0, "original_max_position_embeddings": 8}
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


# --- GGUF -------------------------------------------------------------------------------------------------------------


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


def test_rows_of_q_and_k_lie_pair_by_pair(tmp_path: Path) -> None:
    rows = np.arange(16).reshape(16, 1)
    assert interleave(rows, 2)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
    assert np.array_equal(halve(interleave(rows, 2), 2), rows)
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
        output = kind == "q4_k" and name == "output.weight"
        assert info.kind.name == ("F32" if len(info.shape) == 1 else "Q6_K" if output else kind.upper()), name
    back = load_decoder(tmp_path / "m.gguf")
    assert back.dtype == ("bfloat16" if kind == "bf16" else "float32")
    bits = {"f32": 0, "f16": 11, "bf16": 8, "q8_0": 7, "q6_k": 5, "q4_k": 4, "q4_0": 3}[kind]
    for name, value in model.arrays().items():
        error = np.abs(back.arrays()[name].astype(np.float32) - value).max() / np.abs(value).max()
        # Half a step of an integer of so many bits over the whole range; K types share scales of 6 or 8 bits: twice.
        assert error == 0.0 if kind == "f32" else error <= 2.0**-bits * (1 if kind[-1] != "k" else 2), name


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
    assert found.metadata["general.name"] == "m" and found.metadata["tokenizer.ggml.model"] == "no_vocab"


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
            r"unknown architecture 'lama'.*did you mean 'llama'.*known: gpt2, llama",
        ),
        ({"general.architecture": None}, {}, "missing metadata key 'general.architecture'"),
        ({"general.architecture": 5}, {}, "'general.architecture' expected str, got int"),
        ({"llama.block_count": None}, {}, "block_count: expected a whole number from 1 to 1024, got None"),
        ({"llama.block_count": 513}, {}, r"missing \['blk.2.attn_norm.weight'"),
        ({"llama.block_count": 2**31}, {}, "block_count: expected a whole number from 1 to 1024"),
        ({"llama.block_count": 1}, {}, r"unexpected \['blk.1.attn_k.weight'"),
        ({"llama.attention.head_count": 0}, {}, "heads"),
        ({"llama.attention.head_count": 3}, {}, "kv_heads: expected a divisor|divisible"),
        ({"llama.attention.head_count_kv": [2, 1]}, {}, "head_count_kv' expected int or float or str or bool"),
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
        (micro, "models of family 'microgpt' have no GGUF form; those of gpt2, llama do"),
        (a_model(hidden_act="gelu"), "GGUF's llama has hidden_act 'silu', this model 'gelu'"),
        (a_model(rope_parameters={**YARN, "truncate": False}), "no form for this yarn scaling"),
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


# --- folders ----------------------------------------------------------------------------------------------------------


def test_sharded_folders(tmp_path: Path) -> None:
    model = a_model("gpt2")
    sharded(model, tmp_path / "m")
    assert same(load_decoder(tmp_path / "m"), model)
    linked = tmp_path / "linked"  # as the hub's cache has it
    linked.mkdir()
    for path in (tmp_path / "m").iterdir():
        (linked / path.name).symlink_to(path)
    assert same(load_decoder(linked), model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.norm.weight": "../x.safetensors"}, "'../x.safetensors' is not the plain name"),
        ({"model.norm.weight": "/etc/passwd"}, "is not the plain name"),
        ({"model.norm.weight": "C:\\x"}, "is not the plain name"),
        ({"model.norm.weight": "a\0b"}, "is not the plain name"),
        ({"model.norm.weight": "x" * 300}, "is not the plain name"),
        ({"model.norm.weight": ".."}, "is not the plain name"),
        ({"model.norm.weight": 5}, "an object of file names"),
        ({"model.norm.weight": "none.safetensors"}, "none.safetensors is missing, though"),
        ({"model.norm.weight": "pipe"}, "pipe: cannot read: not a regular file"),
        ({"other": "model-00001-of-00003.safetensors"}, "tensors in none of the files: other"),
        ({"model.norm.weight": "model-00001-of-00003.safetensors"}, "tensor 'model.norm.weight' of .* stands in"),
    ],
)
def test_wrong_indexes(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    import os

    sharded(a_model(), tmp_path / "m")
    os.mkfifo(tmp_path / "m" / "pipe")
    place = tmp_path / "m" / "model.safetensors.index.json"
    index = json.loads(place.read_text())
    index["weight_map"].update(change)
    place.write_text(json.dumps(index))
    with pytest.raises((FormatError, CheckpointError), match=message):
        load_decoder(tmp_path / "m")


@pytest.mark.parametrize("bad", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', "[" * 100_000])
def test_broken_indexes(tmp_path: Path, bad: str) -> None:
    sharded(a_model(), tmp_path / "m")
    (tmp_path / "m" / "model.safetensors.index.json").write_text(bad)
    with pytest.raises(FormatError, match=r"index\.json: "):
        load_decoder(tmp_path / "m")


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlx_folders(tmp_path: Path, bits: int) -> None:
    model = a_model()
    mlx(model, tmp_path / "m", bits)
    assert same(load_decoder(tmp_path / "m"), model)
    assert len(np.unique(model.arrays()["embed.weight"])) > 61 * 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (None, "config.json has no 'quantization'"),
        ({"bits": 9, "group_size": 32}, "bits expected 2 to 8, got '9'"),
        ({"bits": 8, "group_size": 32}, "8 bits a row do not fit"),
        ({"bits": 3, "group_size": 32}, "do not fit"),
        ({"bits": 4, "group_size": 64}, "do not fit"),
        ({"bits": 4, "group_size": 0}, "group_size expected 1 to 65536"),
        ({"bits": 4, "group_size": 32, "mode": "mxfp4"}, "mode expected 'affine', got 'mxfp4'"),
    ],
)
def test_wrong_mlx_settings(tmp_path: Path, setting: Any, message: str) -> None:
    mlx(a_model(), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["quantization"] = setting
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises((ConfigError, FormatError), match=message):
        load_decoder(tmp_path / "m")


def test_weights_of_a_bare_base_model(tmp_path: Path) -> None:
    """gpt2 on the hub itself has no "transformer." before its names."""
    for family in ("gpt2", "llama"):
        model = a_model(family, tie_word_embeddings=True)
        folder = tmp_path / family
        folder.mkdir()
        save_decoder(model, folder)
        (folder / "model.safetensors").unlink()
        bare = {name.removeprefix("transformer.").removeprefix("model."): each for name, each in theirs(model).items()}
        if family == "gpt2":
            bare["h.0.attn.bias"] = np.ones((1, 1, 24, 24), np.float32)
        safetensors.save(folder / "model.safetensors", bare)
        assert same(load_decoder(folder), model)


def test_missing_extra_and_misshaped_weights_are_all_named(tmp_path: Path) -> None:
    model = a_model()
    save_decoder(model, tmp_path)
    weights = theirs(model)
    (tmp_path / "model.safetensors").unlink()
    wrong = {**weights, "model.norm.weight": np.ones(31, np.float32), "lm_head.weight": np.ones((61, 31), np.float32)}
    safetensors.save(tmp_path / "model.safetensors", wrong)
    with pytest.raises(CheckpointError, match=r"norm.weight expected \(32,\), got \(31,\); head expected \(61, 32\)"):
        load_decoder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    del weights["model.norm.weight"], weights["lm_head.weight"]
    safetensors.save(tmp_path / "model.safetensors", {**weights, "x": np.ones(1), "y": np.ones(1)})
    with pytest.raises(
        CheckpointError, match=r"missing \['model.norm.weight', 'lm_head.weight'\]; unexpected \['x', 'y'\]"
    ):
        load_decoder(tmp_path)


class Trap:
    """Unpickled, it writes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    bare, zipped = tmp_path / "pytorch_model.bin", tmp_path / "model.pt"
    payload = pickle.dumps(Trap(str(tmp_path / "payload")))
    bare.write_bytes(payload)
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
    for path in (bare, zipped):
        with pytest.raises(
            CheckpointError, match=r"a pickle, which is never opened.*: convert it where you trust it, python -c"
        ):
            microgpt.load(path)
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "model_type": "llama", "model_file": "x.py"}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(CheckpointError, match=r"no model\.safetensors; model\.pt is a pickle"):
            microgpt.load(tmp_path)
    assert not (tmp_path / "payload").exists()
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="give the folder"):
        microgpt.load(tmp_path / "x.safetensors")


# --- llama2.c ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_llama2c_files(tmp_path: Path, tied: bool) -> None:
    model = a_model(tie_word_embeddings=tied, rms_norm_eps=1e-5)
    llama2c(model, tmp_path / "m.bin")
    found = microgpt.load(tmp_path / "m.bin")
    assert same(found.decoder, model) and found.decoder.config == model.config
    assert isinstance(found.tokenizer, IdsTokenizer)
    data = (tmp_path / "m.bin").read_bytes()
    for bad, message in [
        (data[:-4], "makes a file of .* bytes, got"),
        (data + b"\0", "makes a file of"),
        (data[:20], "too few for a llama2.c header"),
        (b"24ka" + data[4:], "a versioned llama2.c file"),
        (data[:4] + b"\xff" * 4 + data[8:], "impossible sizes"),
        (data[:12] + bytes(4) + data[16:], "impossible sizes"),
        (b"\xff" * 100, "impossible sizes"),
    ]:
        (tmp_path / "bad.bin").write_bytes(bad)
        with pytest.raises(FormatError, match=message):
            microgpt.load(tmp_path / "bad.bin")


# --- memory -----------------------------------------------------------------------------------------------------------


def test_pieces_are_copied_in_any_layout() -> None:
    from microgpt.io.mapped import Stored

    x = np.arange(6 * 500_000, dtype=np.float32).reshape(6, -1)
    released = []
    for value in (x, x.T, x.astype(np.float64), x[:, ::2], np.float32(3.0).reshape(())):
        target = np.zeros(value.shape, np.float32)
        copy(Stored(value.shape, "float32", lambda value=value: value, lambda: released.append(1)), target)  # type: ignore[misc]
        assert np.array_equal(target, value)
    assert len(released) > 20


def test_nothing_is_allocated_for_what_the_file_cannot_fill(tmp_path: Path) -> None:
    save_decoder(a_model(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"vocab_size": 2**24}, {"intermediate_size": 2**28}, {"hidden_size": 2**19, "head_dim": 8}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match="parameters, the files 22,496"):
            load_decoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 10**9}))
    with pytest.raises(ConfigError, match="num_hidden_layers: expected a whole number from 1 to 1024"):
        load_decoder(tmp_path)


def test_a_model_larger_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from microgpt import system

    save_decoder(a_model(), tmp_path)
    need = open_checkpoint(tmp_path).bytes_needed("float64")
    assert need == 8 * a_model().config.num_parameters()
    monkeypatch.setattr(system, "memory", lambda: (10**9, 100_000))
    with pytest.raises(CheckpointError, match=r"the weights need 0 MB of memory as float64, 0 MB are free"):
        load_decoder(tmp_path, "float64")


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is told in another unit elsewhere")
def test_opening_reads_nothing_and_loading_needs_the_weights(tmp_path: Path) -> None:
    """60 MB of bfloat16: beyond what Python and its libraries take, 4 MB to open, 1.1 times the size to load."""
    model = Decoder(MODELS.get("llama")(32768, 512, 4, 8, 64, 0.0), "bfloat16")
    save_decoder(model, tmp_path)
    size = 2 * model.config.num_parameters()
    code = f"""
import resource
from pathlib import Path
import microgpt.api, ml_dtypes
from microgpt.models.pretrained import open_checkpoint, take
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
base = peak()
found = open_checkpoint(Path({str(tmp_path)!r}))
opened = peak()
model = take(found)
print(opened - base, peak() - base)
"""
    opened, loaded = map(int, python(code).stdout.split())
    assert size > 55e6 and opened < 4e6 and loaded < 1.1 * size + 8e6
    assert resource.getpagesize() <= size


def test_tables_of_families_name_real_keys() -> None:
    """Every key of config.json in a table is one that the family writes."""
    from microgpt.models.families import FAMILIES
    from microgpt.models.families.gguf import GGUF

    for name, settings in (("llama", LLAMA), ("gpt2", GPT2)):
        config = FAMILIES.get(name).read(settings)
        written, facts = FAMILIES.get(name).write(config), GGUF.get(name)
        assert {*facts.keys.values(), *facts.fixed, *facts.present} <= {*written, "scale_attn_weights"}
        assert gguf.rules_of(config)
