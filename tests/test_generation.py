"""Generation: the same text for the same seed, alone and together, ends, streams, errors."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

import microgpt
from microgpt.api import AT_ONCE, LanguageModel
from microgpt.engine.generate import generate_ids
from microgpt.engine.sampler import Sampling, draw
from microgpt.errors import ConfigError, NonFiniteError, ShapeError, TokenizerError
from microgpt.models.config import ModelConfig
from microgpt.models.decoder import Decoder
from microgpt.nn.ffn.mlp import GluSpec
from microgpt.nn.mixers.attention import AttentionSpec
from microgpt.nn.rope import RopeSpec
from microgpt.nn.spec import BlockSpec, NormSpec
from microgpt.tokenizers.char import CharTokenizer
from tests.training_tools import SMALL

CONTEXT = 16


@pytest.fixture(scope="module")
def names() -> LanguageModel:
    """A model that has seen some names."""
    run = microgpt.train(**{**SMALL, "steps": 200, "width": 32, "block_size": CONTEXT, "batch_size": 16, "lr": 1e-2})
    return LanguageModel(run.model, run.tokenizer)


@pytest.fixture(scope="module")
def grouped() -> LanguageModel:
    """Another architecture, untrained, with a vocabulary of characters of one to four bytes and of line ends."""
    rms = NormSpec("rms", bias=False)
    block = BlockSpec(AttentionSpec(4, 8, 2, rope=RopeSpec(), window=9), GluSpec(48), rms)
    tokenizer = CharTokenizer("ab\n é你🎉")
    config = ModelConfig(
        tokenizer.vocab_size, 32, 64, (block, block), learned_positions=False, final_norm=rms, init_std=0.3
    )
    return LanguageModel(Decoder(config, seed=4), tokenizer)


# -- which token -----------------------------------------------------------
@pytest.mark.parametrize("prompt", ["", "e", "mar"])
@pytest.mark.parametrize("which", ["names", "grouped"])
def test_greedy_takes_the_largest_logit_of_a_whole_forward(
    which: str, prompt: str, request: pytest.FixtureRequest
) -> None:
    model: LanguageModel = request.getfixturevalue(which)
    prompt = prompt if which == "names" else "ab"[: len(prompt)]
    ids = [0, *model.tokenizer.encode(prompt)]
    expected: list[int] = []
    while len(expected) < 12:
        token = int(model.logits([*ids, *expected])[-1].argmax())
        if token == model.tokenizer.eos_id:
            break
        expected.append(token)
    got = model.generate(prompt, max_tokens=12, temperature=0.0)
    assert got.ids == expected
    assert got.text == model.tokenizer.decode(expected)
    assert got.usage == {"prompt_tokens": len(ids), "completion_tokens": len(expected)}


def test_sampled_tokens_follow_the_logits_of_a_whole_forward(names: LanguageModel) -> None:
    sampling = Sampling(0.9, top_k=12, top_p=0.95, seed=5)
    got = names.generate("a", max_tokens=10, temperature=0.9, top_k=12, top_p=0.95, seed=5)
    ids = [0, *names.tokenizer.encode("a")]
    for step, token in enumerate(got.ids):
        assert token == draw(names.logits(ids)[-1], sampling, 0, step)
        ids.append(token)


def test_the_same_seed_writes_the_same_text(names: LanguageModel) -> None:
    texts = [[each.text for each in names.generate_many("", 20, seed=seed)] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) > 10


@pytest.mark.parametrize("which", ["names", "grouped"])
def test_a_row_of_a_batch_is_what_it_is_alone(which: str, request: pytest.FixtureRequest) -> None:
    """Prompts of different lengths, which also end at different times."""
    model: LanguageModel = request.getfixturevalue(which)
    sampling = Sampling(seed=9)
    prompts = [[0], [0, 1, 2, 3], [0, 2], [0, 5, 1, 1, 4, 2, 6], [0, 3]]
    stops = (0,)
    together: list[list[int]] = [[] for _ in prompts]
    for event in generate_ids(model.decoder, prompts, sampling, 9, stops):
        together[event.row].append(event.token)
    for row, prompt in enumerate(prompts):
        alone = [event.token for event in generate_ids(model.decoder, [prompt], sampling, 9, stops, first_row=row)]
        assert together[row] == alone
    assert len({len(each) for each in together}) > 1 or which == "grouped"


def test_many_samples_are_the_same_however_they_are_grouped(names: LanguageModel) -> None:
    """More rows than advance together: row AT_ONCE still draws its own numbers."""
    many = names.generate_many("", AT_ONCE + 3, max_tokens=4, seed=8)
    few = names.generate_many("", 3, max_tokens=4, seed=8)
    assert [each.ids for each in many[:3]] == [each.ids for each in few]
    stops = (names.tokenizer.eos_id or 0,)
    for row in (AT_ONCE, AT_ONCE + 2):
        events = generate_ids(names.decoder, [[0]], Sampling(seed=8), 4, stops, first_row=row)
        assert many[row].ids == [event.token for event in events if event.finish_reason != "stop"]
    assert names.generate("", max_tokens=4, seed=8) == many[0]


def test_a_model_with_nan_weights() -> None:
    tokenizer = CharTokenizer("ab")
    block = BlockSpec(AttentionSpec(2, 4, 2), GluSpec(8))
    model = LanguageModel(Decoder(ModelConfig(3, 8, 8, (block,))), tokenizer)
    model.decoder.embed.weight.numpy()[1] = np.nan
    with pytest.raises(NonFiniteError):
        model.generate("a")
    with pytest.raises(NonFiniteError):
        list(model.stream("a"))


# -- prompts and ends -----------------------------------------------------------
def test_prompts_that_cannot_be(names: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match=f"expected 1 to {CONTEXT} tokens .*, got {CONTEXT + 1}"):
        names.generate("a" * CONTEXT)  # and the token that begins a name
    with pytest.raises(TokenizerError, match="'É' at position 1"):
        names.generate("aÉ")
    with pytest.raises(TokenizerError, match="character 0, U\\+DC80, is half"):
        names.generate("\udc80")
    with pytest.raises(TokenizerError):
        names.generate("<|endoftext|>")  # text is content, never a control token
    for ids in ([], 3, [[1, 2], [3]], [[[1]]], np.empty((0, 4), int), np.empty((4, 0), int)):
        with pytest.raises(ShapeError, match=r"^ids: expected"):
            names.logits(ids)  # type: ignore[arg-type]
    with pytest.raises(TokenizerError, match="expected 0 to 26, got -1 to 27"):
        names.logits([0, -1, 27])
    with pytest.raises(ShapeError, match="whole number"):
        names.logits(np.array([0.5]))
    with pytest.raises(ShapeError, match="at least two"):
        names.loss([0])
    with pytest.raises(ShapeError):
        names.logits([0] * (CONTEXT + 1))


def test_a_prompt_may_be_empty_where_a_token_begins_every_text(names: LanguageModel) -> None:
    assert names.generate("", temperature=0.0).usage["prompt_tokens"] == 1
    tokenizer = CharTokenizer(names.tokenizer.decode(range(1, 27)))
    tokenizer.bos_id = None
    without = LanguageModel(names.decoder, tokenizer)
    with pytest.raises(ShapeError, match="the prompt is empty"):
        without.generate("")
    assert without.generate("a", temperature=0.0).usage["prompt_tokens"] == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"max_tokens": 0}, {"max_tokens": -3}, {"temperature": -0.1}, {"temperature": float("nan")},
        {"temperature": float("inf")}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_p": float("nan")},
        {"seed": -1}, {"seed": 2**64},
    ],
)  # fmt: skip
def test_impossible_settings(settings: dict[str, float], names: LanguageModel) -> None:
    name = next(iter(settings))
    with pytest.raises(ConfigError, match=f"^{name}: expected"):
        names.generate("a", **settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"^{name}: expected"):
        list(names.stream("a", **settings))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="num_samples"):
        names.generate_many("a", 0)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_no_more_than_max_tokens(count: int, grouped: LanguageModel) -> None:
    grouped.tokenizer.eos_id = None
    try:
        got = grouped.generate("a", max_tokens=count)
        assert len(got.ids) == count and got.finish_reason == "length"
    finally:
        grouped.tokenizer.eos_id = 0


def test_the_context_ends_a_text(grouped: LanguageModel) -> None:
    grouped.tokenizer.eos_id = None
    try:
        got = grouped.generate("ab", max_tokens=1000)
        assert got.finish_reason == "length"
        # 64 tokens have been read when the last one is drawn, which itself is never read.
        assert got.usage == {"prompt_tokens": 3, "completion_tokens": 64 - 3 + 1}
        full = grouped.generate("a" * 63, max_tokens=1000)
        assert len(full.ids) == 1 and full.finish_reason == "length"
    finally:
        grouped.tokenizer.eos_id = 0


def test_the_end_token_ends_a_text(names: LanguageModel) -> None:
    got = [each for each in names.generate_many("", 30, max_tokens=CONTEXT, seed=3) if each.finish_reason == "stop"]
    assert len(got) > 15
    assert all(0 not in each.ids and len(each.ids) == len(each.text) for each in got)


# -- streams and threads -----------------------------------------------------------
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("which", ["names", "grouped"])
def test_streamed_pieces_are_the_text(which: str, seed: int, request: pytest.FixtureRequest) -> None:
    model: LanguageModel = request.getfixturevalue(which)
    pieces = list(model.stream("a", max_tokens=30, temperature=1.3, seed=seed))
    assert "".join(pieces) == model.generate("a", max_tokens=30, temperature=1.3, seed=seed).text
    assert all(pieces) and not any("\ufffd" in piece for piece in pieces)


def test_a_stream_can_be_left(names: LanguageModel) -> None:
    stream = names.stream("a", max_tokens=12, seed=1)
    first = next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert names.generate("a", max_tokens=12, seed=1).text.startswith(first)


def test_several_threads_on_one_model(names: LanguageModel) -> None:
    """Whole texts and streams at once; each is what it is alone."""
    expected = [names.generate("a", max_tokens=12, seed=seed).text for seed in range(8)]
    got: dict[int, list[str]] = {seed: [] for seed in range(8)}
    start = threading.Barrier(8)

    def work(seed: int) -> None:
        start.wait()
        for _ in range(3):
            got[seed].append(names.generate("a", max_tokens=12, seed=seed).text)
            got[seed].append("".join(names.stream("a", max_tokens=12, seed=seed)))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in got]
    for each in threads:
        each.start()
    for each in threads:
        each.join(timeout=60)
    assert got == {seed: [expected[seed]] * 6 for seed in got}


def test_logits_have_the_shape_of_the_ids(names: LanguageModel) -> None:
    rows = np.array([[0, 1, 2], [0, 5, 9]])
    both = names.logits(rows)
    assert both.shape == (2, 3, 27) and both.dtype == np.float32
    for i in range(2):
        assert np.array_equal(names.logits(rows[i]), both[i])
    assert np.array_equal(names.logits(rows.astype(np.uint8)), both)
    kept = both.copy()
    names.logits([0, 7, 7, 7])
    assert np.array_equal(both, kept)  # a result is the caller's own


def test_loss_is_that_of_the_logits(names: LanguageModel) -> None:
    """float32 logits on both sides; sums of 27 and 6 numbers differ by a few eps of the loss's size."""
    ids = [0, 5, 13, 13, 1, 0]
    logits = names.logits(ids[:-1]).astype(np.float64)
    expected = np.mean([np.log(np.exp(row).sum()) - row[target] for row, target in zip(logits, ids[1:], strict=True)])
    assert abs(names.loss(ids) - expected) < 32 * np.finfo(np.float32).eps * expected
