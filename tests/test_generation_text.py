"""Texts while they are written: stop strings over every split, streams, options, and what a batch may not change."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microgpt.api import LanguageModel
from microgpt.engine.config import GenerationConfig, GenerationOptions
from microgpt.engine.generate import generate_ids
from microgpt.engine.sampler import Sampling, draw
from microgpt.engine.text import StopScanner, Writer
from microgpt.errors import ConfigError, MicrogptError, ShapeError, TokenizerError
from microgpt.models.config import ModelConfig
from microgpt.models.decoder import Decoder
from microgpt.nn.ffn.mlp import GluSpec
from microgpt.nn.mixers.attention import AttentionSpec
from microgpt.nn.rope import RopeSpec
from microgpt.nn.spec import BlockSpec, NormSpec
from microgpt.tokenizers.base import Tokenizer
from microgpt.tokenizers.char import CharTokenizer
from tests.test_conformance import CONTEXT, every_variant, logits, make


class ByteTokenizer(Tokenizer):
    """One id a byte, so that characters span tokens; 256 is the end token."""

    vocab_size, bos_id, eos_id, special_ids = 257, 256, 256, frozenset([256])

    def _encode(self, text: str) -> list[int]:
        return list(text.encode())

    def _decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def _files(self) -> dict[str, str]:
        return {}


def language_model(tokenizer: Tokenizer, seed: int = 4, context: int = 64) -> LanguageModel:
    """Untrained, so that texts are wild."""
    rms = NormSpec("rms", bias=False)
    block = BlockSpec(AttentionSpec(4, 8, 2, rope=RopeSpec(), window=9), GluSpec(48), rms)
    config = ModelConfig(
        tokenizer.vocab_size, 32, context, (block, block), learned_positions=False, final_norm=rms, init_std=0.3
    )
    return LanguageModel(Decoder(config, seed=seed), tokenizer)


@pytest.fixture(scope="module")
def small() -> LanguageModel:
    return language_model(CharTokenizer("ab\n é你🎉"))


# -- stop strings -----------------------------------------------------------
def cut(text: str, stops: list[str], before: str = "") -> tuple[str, bool]:
    """The text before the stop string that is complete first, of several the longest: by looking at every end."""
    whole = before + text
    for end in range(len(before) + 1, len(whole) + 1):
        starts = [end - len(stop) for stop in stops if whole[:end].endswith(stop)]
        if starts:
            return whole[len(before) : min(starts)], True
    return text, False


few = st.text("abé🎉", max_size=12)


@given(text=few, stops=st.lists(st.text("abé🎉", min_size=1, max_size=4), max_size=3), before=few, data=st.data())
def test_however_a_text_is_cut_it_ends_at_the_same_place(
    text: str, stops: list[str], before: str, data: st.DataObject
) -> None:
    scanner = StopScanner(stops, before)
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    shown = ""
    wanted, ended = cut(text, stops, before)
    for start, end in zip([0, *places], [*places, len(text)], strict=True):
        shown += scanner.push(text[start:end])
        assert wanted.startswith(shown)  # nothing is shown that would have to be taken back
        if not scanner.ended:
            # and nothing is held back but a beginning of a stop string
            held = (before + text[:end])[len(before) + len(shown) :]
            assert not held or any(stop.startswith(held) for stop in stops)
    assert (shown + scanner.finish(), scanner.ended) == (wanted, ended)


@given(text=st.text("ab🎉é", max_size=10), stops=st.lists(st.text("ab🎉é", min_size=1, max_size=3), max_size=2))
def test_characters_of_several_tokens(text: str, stops: list[str]) -> None:
    writer = Writer(ByteTokenizer(), stops, "")
    pieces = []
    for token in text.encode():
        pieces.append(writer.push(token))
        if writer.ended:
            break
    pieces.append(writer.finish())
    assert ("".join(pieces), writer.ended) == cut(text, stops)
    assert not any("\ufffd" in piece for piece in pieces)


def test_by_hand() -> None:
    def feed(stops: list[str], *pieces: str, before: str = "") -> list[str]:
        scanner = StopScanner(stops, before)
        return [*(scanner.push(piece) for piece in pieces), scanner.finish()]

    assert feed(["END"], "a", "E", "N", "x", "E") == ["a", "", "", "ENx", "", "E"]
    assert feed(["END"], "aE", "ND!") == ["a", "", ""]
    assert feed(["aab"], "a", "a", "a", "b") == ["", "", "a", "", ""]
    assert feed(["bc", "abcd"], "abcd") == ["a", ""]  # complete first
    assert feed(["c", "abc"], "xabc") == ["x", ""]  # at the same place: the longest
    assert feed(["\n\n"], "\nx", before="Q:\n") == ["", ""]  # it begins in the prompt
    assert feed(["Q:"], "x", before="Q:") == ["x", ""]  # but does not lie there
    assert feed([], "a", "") == ["a", "", ""]


def test_a_model_stops_where_its_text_does(small: LanguageModel) -> None:
    """Each substring of a text in turn as its stop string."""
    whole = small.generate("a", max_tokens=24, seed=5, ignore_eos=True)
    assert whole.finish_reason == "length" and len(whole.ids) == 24
    for start in range(0, len(whole.text) - 3, 2):
        for size in (1, 2, 3):
            stop = whole.text[start : start + size]
            got = small.generate("a", max_tokens=24, seed=5, ignore_eos=True, stop=[stop, "never"])
            expected, ended = cut(whole.text, [stop], "a")
            assert ended and (got.text, got.finish_reason) == (expected, "stop")
            # the ids go on to the one that completes the stop string, and not beyond
            assert got.ids == whole.ids[: len(got.ids)]
            assert ("a" + small.tokenizer.decode(got.ids)).endswith(stop)
            assert got.usage["completion_tokens"] == len(got.ids)
            pieces = list(small.stream("a", max_tokens=24, seed=5, ignore_eos=True, stop=stop))
            assert "".join(pieces) == expected and all(pieces)


def test_rows_stop_one_by_one(small: LanguageModel) -> None:
    options: dict[str, Any] = {"max_tokens": 20, "seed": 11, "ignore_eos": True}
    free = small.generate_many("b", 9, **options)
    stopped = small.generate_many("b", 9, **options, stop=("a", "🎉b"))
    for was, now in zip(free, stopped, strict=True):
        text, ended = cut(was.text, ["a", "🎉b"], "b")
        assert (now.text, now.finish_reason) == (text, "stop" if ended else "length")
    assert len({len(each.ids) for each in stopped}) > 2


def test_the_end_token_can_be_ignored(small: LanguageModel) -> None:
    for seed in range(30):
        got = small.generate("a", max_tokens=40, seed=seed, ignore_eos=True)
        assert len(got.ids) == 40
        ended = small.generate("a", max_tokens=40, seed=seed)
        if ended.finish_reason == "stop":
            assert got.ids[: len(ended.ids) + 1] == [*ended.ids, 0]  # the same text, and then the end token
            assert got.text.startswith(ended.text) and "endoftext" not in got.text
            return
    raise AssertionError("no text ended")


@pytest.mark.parametrize("count", [1, 2, 20])
@pytest.mark.parametrize("stop", [[], ["never"], ["\ufffd"], ["\ufffd\ufffd", "z"]])
def test_what_is_unfinished_at_the_end_is_shown_and_searched(count: int, stop: list[str]) -> None:
    """Tokens are bytes that seldom are text: the last ones become characters when nothing more can come."""
    model = language_model(ByteTokenizer())
    reasons = set()
    for seed in range(12):
        options: dict[str, Any] = {"max_tokens": count, "temperature": 0.7, "seed": seed, "ignore_eos": True}
        got = model.generate("é", **options, stop=stop)
        text, ended = cut(model.tokenizer.decode(got.ids), stop, "é")
        assert (got.text, got.finish_reason) == (text, "stop" if ended else "length")
        assert "".join(model.stream("é", **options, stop=stop)) == text
        reasons.add(got.finish_reason)
    assert "stop" in reasons if "\ufffd" in stop else True


def test_the_beginning_of_a_stop_string_is_shown_when_none_comes(small: LanguageModel) -> None:
    options: dict[str, Any] = {"max_tokens": 12, "seed": 5, "ignore_eos": True}
    text = small.generate("a", **options).text
    for size in range(1, 5):
        got = small.generate("a", **options, stop=text[-size:] + "ab你b")
        assert (got.text, got.finish_reason) == (text, "length")
        assert "".join(small.stream("a", **options, stop=text[-size:] + "ab你b")) == text


# -- options -----------------------------------------------------------
ALL: dict[str, Any] = {
    "temperature": 1.3, "top_k": 7, "top_p": 0.97, "min_p": 0.02, "repetition_penalty": 1.2, "presence_penalty": 0.3,
    "frequency_penalty": 0.2, "seed": 3, "max_tokens": 20, "stop": ["你a", "🎉"], "ignore_eos": True,
}  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_is_the_text_with_all_options(small: LanguageModel, seed: int) -> None:
    options = {**ALL, "seed": seed}
    assert "".join(small.stream("ab", **options)) == small.generate("ab", **options).text


def test_a_row_of_a_batch_is_what_it_is_alone_with_all_options(small: LanguageModel) -> None:
    """The same ids for prompts of different lengths together and alone; and each draw looks at its own row."""
    sampling = Sampling(**{name: ALL[name] for name in (f.name for f in dataclasses.fields(Sampling))})
    prompts = [[0], [0, 1, 2, 3], [0, 2], [0, 5, 1, 1, 4, 2, 6], [0, 3]]
    together: list[list[int]] = [[] for _ in prompts]
    for event in generate_ids(small.decoder, prompts, sampling, 12, (1,)):
        together[event.row].append(event.token)
    for row, prompt in enumerate(prompts):
        alone = [event.token for event in generate_ids(small.decoder, [prompt], sampling, 12, (1,), first_row=row)]
        assert together[row] == alone
        for step, token in enumerate(alone):
            scores = small.logits([*prompt, *alone[:step]])[-1]
            assert token == draw(scores, sampling, row, step, prompt, alone[:step])
    many = small.generate_many("ab", 5, **ALL)
    assert small.generate("ab", **ALL) == many[0] and many[:3] == small.generate_many("ab", 3, **ALL)


def test_every_option_changes_something(small: LanguageModel) -> None:
    plain: dict[str, Any] = {"max_tokens": 60, "seed": 1}
    base = small.generate_many("ab", 8, **plain)
    for name, value in ALL.items():
        # The stop string that is certain to come, and few tokens.
        value = {"stop": "a", "max_tokens": 3}.get(name, value)
        assert small.generate_many("ab", 8, **{**plain, name: value}) != base, name


def test_the_options_are_listed_once() -> None:
    """Type checkers read a TypedDict, help() a signature, and both say what the dataclass says."""
    fields = {field.name: field for field in dataclasses.fields(GenerationConfig)}
    assert typing.get_type_hints(GenerationOptions) == typing.get_type_hints(GenerationConfig)
    for method in (LanguageModel.generate, LanguageModel.generate_many, LanguageModel.stream):
        shown = inspect.signature(method).parameters
        keywords = {name: each for name, each in shown.items() if each.kind is each.KEYWORD_ONLY}
        assert {name: each.default for name, each in keywords.items()} == {n: f.default for n, f in fields.items()}
        assert set(shown) - set(keywords) <= {"self", "prompt", "count"}
    assert GenerationConfig.of({"stop": "x"}) == GenerationConfig(stop=["x"]) == GenerationConfig(stop=("x",))
    assert hash(GenerationConfig(stop=["x"])) == hash(GenerationConfig(stop="x"))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"tempreature": 1}, r"unknown option 'tempreature' \(did you mean 'temperature'\?\); known: temperature, top_k"),
    ({"max_new_tokens": 5}, r"unknown option 'max_new_tokens' \(did you mean 'max_tokens'\?\)"),
    ({"zzz": 5}, "unknown option 'zzz'; known"),
    ({"max_tokens": 0}, "max_tokens: expected at least 1, got 0"),
    ({"max_tokens": 2.5}, "max_tokens: expected at least 1, got 2.5"),
    ({"max_tokens": None}, "max_tokens: expected at least 1, got None"),
    ({"max_tokens": True}, "max_tokens: expected"),
    ({"stop": ""}, "stop: expected a string or a list of strings, none empty, got ''"),
    ({"stop": ["a", ""]}, "stop: expected"),
    ({"stop": [1]}, "stop: expected"),
    ({"stop": 5}, "stop: expected"),
    ({"stop": None}, "stop: expected"),
    ({"stop": b"a"}, "stop: expected"),
    ({"stop": {"a": 1}}, "stop: expected"),
    ({"stop": ["a", "\udc80"]}, "stop: expected text that UTF-8 can write"),
    ({"ignore_eos": 1}, "ignore_eos: expected True or False, got 1"),
    ({"ignore_eos": "yes"}, "ignore_eos: expected"),
    ({"top_p": 0}, "top_p: expected"),
    ({"min_p": "a" * 1000}, "min_p: expected"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_options_that_cannot_be(options: dict[str, Any], message: str, small: LanguageModel) -> None:
    """Told by the call, a stream's too, before anything is computed."""
    for call in (small.generate, small.stream, lambda prompt, **more: small.generate_many(prompt, 2, **more)):
        with pytest.raises(ConfigError, match=f"^{message}") as error:
            call("a", **options)
        assert len(str(error.value)) < 250 and "\n" not in str(error.value)


@pytest.mark.parametrize("prompt", [None, 5, b"a", ["a"], 1.5])
def test_prompts_of_another_type(prompt: Any, small: LanguageModel) -> None:
    for call in (small.generate, small.stream, lambda p: small.generate_many(p, 1)):
        with pytest.raises(TokenizerError, match="prompt: expected a string"):
            call(prompt)


@pytest.mark.parametrize("count", [0, -1, 1.5, "2", None, True, 10**20])
def test_counts_that_cannot_be(count: Any, small: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="num_samples: expected 1 to 1000000, got"):
        small.generate_many("a", count)


def test_a_failed_call_leaves_the_next_as_it_was(small: LanguageModel) -> None:
    before = small.generate("ab", **ALL)
    weights = small.decoder.embed.weight.numpy()
    kept = weights[2].copy()
    weights[2] = np.nan
    try:
        for _ in range(2):
            with pytest.raises(MicrogptError):
                small.generate("b", **ALL)
    finally:
        weights[2] = kept
    with pytest.raises(ShapeError):
        small.generate("a" * 100, **ALL)
    assert small.generate("ab", **ALL) == before


# -- every decoder -----------------------------------------------------------
@every_variant
def test_the_cache_writes_what_whole_forwards_write(config: ModelConfig) -> None:
    """To the end of the context, three prompts together, greedy with a penalty so that texts do not stand still."""
    model = make(config)
    sampling = Sampling(0.0, repetition_penalty=1.4)
    prompts = [[3], [5, 1, 28, 7, 7, 2, 9, 11], [4, 4, 4]]
    together: list[list[int]] = [[] for _ in prompts]
    for event in generate_ids(model, prompts, sampling, 100):
        together[event.row].append(event.token)
    for row, prompt in enumerate(prompts):
        ids = list(prompt)
        while len(ids) <= CONTEXT:
            last: npt.NDArray[Any] = logits(model, np.array(ids, np.int32))[-1]
            ids.append(draw(last, sampling, row, len(ids) - len(prompt), prompt, ids[len(prompt) :]))
        assert together[row] == ids[len(prompt) :]
