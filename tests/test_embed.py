"""Texts as vectors: a tiny random BERT's hidden states, pooled as the files of sentence-transformers say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import microgpt
from microgpt import _kernels as k
from microgpt.errors import ConfigError, FormatError, ShapeError, TokenizerError
from microgpt.models.decoder import Decoder
from microgpt.models.families import FAMILIES
from microgpt.models.pooling import Pooling, read_pooling
from microgpt.nn import Ctx, Layout
from microgpt.tokenizers.base import Tokenizer
from tests.tiny_families import ENCODERS, TINY

pytest.importorskip("tokenizers", reason="the tokenizers library is not installed")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "dog", "sleeps", "##s", "the", "on", "mat", ".", "[MASK]"]
TEXTS = ["A cat sleeps.", "the dogs", "", "the cat on the mat sleeps on a mat"]
IDS = [[2, 4, 5, 7, 12, 3], [2, 9, 6, 8, 3], [2, 3], [2, 9, 5, 10, 9, 11, 7, 10, 4, 11, 3]]
KINDS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens",
         "lasttoken": "pooling_mode_lasttoken"}  # fmt: skip


def tokenizer(folder: Path) -> Tokenizer:
    path = folder / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return Tokenizer.load(path)


def encoder(folder: Path, pooling: Pooling | None = None, dtype: str = "float32") -> microgpt.LanguageModel:
    kind, settings = ENCODERS["bert"]
    return microgpt.LanguageModel(Decoder(FAMILIES.get(kind).read(settings), dtype, seed=3), tokenizer(folder), pooling)


def hidden(model: microgpt.LanguageModel, ids: list[int]) -> npt.NDArray[Any]:
    """One text alone."""
    states = model.decoder.hidden(k.from_numpy(np.array(ids, np.int32)), Ctx(Layout.packed([len(ids)])))
    return states.numpy().astype(np.float64)


def pooled(kind: str, states: npt.NDArray[Any]) -> npt.NDArray[Any]:
    made: npt.NDArray[Any] = {
        "mean": sum(states) / len(states),
        "cls": states[0],
        "max": np.array([max(column) for column in states.T]),
        "lasttoken": states[-1],
    }[kind]
    return made


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_hidden_states_pooled(tmp_path: Path, kind: str, normalize: bool):
    model = encoder(tmp_path, Pooling(kind, normalize))
    got = model.embed(TEXTS)
    assert got.shape == (4, 32) and got.dtype == np.float32
    for row, ids in zip(got, IDS, strict=True):
        want = pooled(kind, hidden(model, ids))
        if normalize:
            want = want / np.sqrt((want * want).sum())
        # float64 until the last rounding, of at most half a unit
        np.testing.assert_allclose(row, want, rtol=2.0**-23, atol=1e-12)


def test_an_encoder_without_a_stated_pooling_takes_the_plain_mean(tmp_path: Path):
    model = encoder(tmp_path)
    assert np.array_equal(model.embed(TEXTS), encoder(tmp_path, Pooling("mean", False)).embed(TEXTS))


def test_a_text_alone_and_among_others_has_the_same_bits(tmp_path: Path):
    model = encoder(tmp_path, Pooling(normalize=True))
    many = model.embed(TEXTS * 300)  # several times what is computed at once
    alone = np.concatenate([model.embed([text]) for text in TEXTS])
    assert np.array_equal(many, np.tile(alone, (300, 1)))
    assert model.embed([]).shape == (0, 32)


def test_bfloat16_embeds_in_float32(tmp_path: Path):
    got = encoder(tmp_path, dtype="bfloat16").embed(TEXTS)
    want = encoder(tmp_path).embed(TEXTS)
    assert got.dtype == np.float32
    # Norms make the states of size one; some 30 roundings of 2^-9 on the way, of independent sign.
    assert 0 < np.abs(got - want).max() <= 30**0.5 * 2.0**-9 * np.abs(want).max() * 2


def test_texts_that_are_too_long(tmp_path: Path):
    model = encoder(tmp_path, Pooling(max_tokens=6))
    with pytest.raises(ShapeError, match="text 3: expected at most 6 tokens, got 11; truncate=True"):
        model.embed(TEXTS)
    got = model.embed(TEXTS, truncate=True)
    want = hidden(model, [2, 9, 5, 10, 9, 3]).mean(0)  # [SEP] stays
    np.testing.assert_allclose(got[3], want, rtol=2.0**-23, atol=1e-12)
    with pytest.raises(ShapeError, match="text 0: expected 1 to 1 tokens, got 2"):
        encoder(tmp_path, Pooling(max_tokens=1)).embed([""], truncate=True)
    context = encoder(tmp_path, Pooling(max_tokens=10_000))  # the model's own 32 count
    with pytest.raises(ShapeError, match="text 0: expected at most 32 tokens, got 42"):
        context.embed(["cat " * 40])


def test_text_is_lowered_where_the_files_say_so(tmp_path: Path):
    (tmp_path / "cased").mkdir()
    (tmp_path / "cased" / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    plain = encoder(tmp_path / "cased")
    lowered = encoder(tmp_path / "cased", Pooling(lower_case=True))
    assert not np.array_equal(plain.embed(["A Cat"]), plain.embed(["a cat"]))
    assert np.array_equal(lowered.embed(["A Cat"]), plain.embed(["a cat"]))


@pytest.mark.parametrize("texts", ["a cat", [3], [["a"]], [b"a"]])
def test_what_is_no_list_of_strings_is_refused(tmp_path: Path, texts: Any):
    with pytest.raises(TokenizerError, match="expected a list of strings"):
        encoder(tmp_path).embed(texts)


def test_decoders_need_a_stated_pooling_and_encoders_do_not_write(tmp_path: Path):
    kind, settings = TINY["llama"]
    decoder = Decoder(FAMILIES.get(kind).read(settings))
    plain = microgpt.LanguageModel(decoder, tokenizer(tmp_path))
    with pytest.raises(ConfigError, match="a decoder whose files state no pooling"):
        plain.embed(TEXTS)
    model = microgpt.LanguageModel(decoder, plain.tokenizer, Pooling("lasttoken"))
    np.testing.assert_allclose(model.embed(TEXTS)[1], hidden(model, IDS[1])[-1], rtol=2.0**-23)
    bert = encoder(tmp_path)
    for call in (lambda: bert.generate("a cat"), lambda: bert.logits([2, 4, 3]), lambda: bert.loss([2, 4, 3]),
                 lambda: next(bert.stream("a")), lambda: bert.chat([{"role": "user", "content": "a"}])):  # fmt: skip
        with pytest.raises(ConfigError, match=r"an encoder \(bert\) does not predict the next token"):
            call()


@pytest.mark.parametrize("template, frame", [
    ("[CLS] $A [SEP]", ([2], [3])), ("[CLS] [CLS] $A", ([2, 2], [])), ("$A [SEP]", ([], [3])), ("$A", ([], [])),
])  # fmt: skip
def test_what_stands_around_a_text_follows_the_post_processor(
    tmp_path: Path, template: str, frame: tuple[list[int], list[int]]
):
    from tokenizers import Tokenizer as Library
    from tokenizers.processors import TemplateProcessing

    tokenizer(tmp_path).save(tmp_path)
    library = Library.from_file(str(tmp_path / "tokenizer.json"))
    library.post_processor = TemplateProcessing(single=template, special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    library.save(str(tmp_path / "tokenizer.json"))
    found = Tokenizer.load(tmp_path)
    assert found.frame == frame
    assert found.encode("[CLS] a") == [1, 1, 1, 4]  # text is content


# -- folders --------------------------------------------------------------------------------------------------------
def write(folder: Path, pooling: Any, kinds: tuple[str, ...] = ("Transformer", "Pooling"), **lengths: Any) -> None:
    places = {"Transformer": "", "Pooling": "1_Pooling"}
    modules = [{"idx": i, "name": str(i), "path": places.get(each, f"{i}_{each}"),
                "type": f"sentence_transformers.models.{each}"} for i, each in enumerate(kinds)]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if lengths:
        (folder / "sentence_bert_config.json").write_text(json.dumps(lengths))


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_of_sentence_transformers_are_read(tmp_path: Path, kind: str):
    assert read_pooling(tmp_path) is None
    older = {"word_embedding_dimension": 32, **{key: name == kind for name, key in KINDS.items()}}
    write(tmp_path, older)
    assert read_pooling(tmp_path) == Pooling(kind)
    write(tmp_path, older, ("Transformer", "Pooling", "Normalize"), max_seq_length=20, do_lower_case=True)
    assert read_pooling(tmp_path) == Pooling(kind, True, 20, True)
    write(tmp_path, {"pooling_mode": kind}, max_seq_length=None, do_lower_case=False)
    assert read_pooling(tmp_path) == Pooling(kind)


def test_a_saved_model_embeds_as_before(tmp_path: Path):
    model = encoder(tmp_path, Pooling("max", True, 12, True))
    model.save(tmp_path / "saved")
    again = microgpt.load(tmp_path / "saved")
    assert again.pooling == model.pooling
    assert np.array_equal(again.embed(TEXTS), model.embed(TEXTS))


@pytest.mark.parametrize(
    "kinds, pooling, named",
    [
        (("Transformer", "Pooling", "Dense"), {"pooling_mode_mean_tokens": True}, "module Dense"),
        (("Transformer",), {}, "no pooling"),
        (("Transformer", "Pooling"), {}, "no pooling"),
        (("Transformer", "Pooling"), {"pooling_mode_weightedmean_tokens": True}, "pooling pooling_mode_weightedmean"),
        (("Transformer", "Pooling"), {"pooling_mode": "weightedmean"}, "pooling weightedmean"),
        (
            ("Transformer", "Pooling"),
            {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
            "pooling max",
        ),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, kinds: tuple[str, ...], pooling: Any, named: str):
    write(tmp_path, pooling, kinds)
    model = encoder(tmp_path, read_pooling(tmp_path))
    with pytest.raises(ConfigError, match=named):
        model.embed(TEXTS)
    with pytest.raises(ConfigError, match="cannot be saved whole"):
        model.save(tmp_path / "saved")
    with pytest.raises(ConfigError, match=r"pooling 'meen': expected one of .*did you mean 'mean'"):
        Pooling("meen")


@pytest.mark.parametrize(
    "modules",
    ["{}", "[3]", '[{"type": "x"}]', '[{"type": "x.Pooling", "path": "../outside"}]', "[" * 5000, "[NaN]",
     '[{"type": "x.Pooling", "path": "/etc"}]', '[{"type": 3, "path": ""}]'],
)  # fmt: skip
def test_broken_files_end_in_typed_errors(tmp_path: Path, modules: str):
    (tmp_path / "modules.json").write_text(modules)
    with pytest.raises(FormatError, match=r"modules\.json"):
        read_pooling(tmp_path)


@pytest.mark.parametrize("length", [0, -1, 1.5, "many", True])
def test_impossible_lengths_are_refused(tmp_path: Path, length: Any):
    write(tmp_path, {"pooling_mode_mean_tokens": True}, max_seq_length=length)
    with pytest.raises(FormatError, match="max_seq_length: expected a number of tokens"):
        read_pooling(tmp_path)
