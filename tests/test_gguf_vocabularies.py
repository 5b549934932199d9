"""The vocabulary that an exported GGUF file has for llama.cpp, read back from those keys; what has no such form."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

import microgpt
from microgpt.errors import TokenizerError
from microgpt.io.gguf import GgufFile
from microgpt.models.decoder import Decoder
from microgpt.models.families import FAMILIES
from microgpt.tokenizers.base import Tokenizer
from microgpt.tokenizers.bpe import train_bpe
from microgpt.tokenizers.bytebpe import byte_level
from microgpt.tokenizers.bytebpe import make as made_of
from microgpt.tokenizers.char import CharTokenizer
from microgpt.tokenizers.ggml_vocab import vocabulary
from microgpt.tokenizers.gguf import from_metadata, word_piece
from microgpt.tokenizers.hub import HubTokenizer
from microgpt.tokenizers.patterns import PATTERNS
from tests.tokenizer_fuzz import make
from tests.tokenizer_tools import FOLDER, gguf_llama

pytest.importorskip("tokenizers")
TEXTS = make(31, 300)
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
SETTINGS = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1,
            "max_position_embeddings": 8}  # fmt: skip


def keys(tokenizer: Tokenizer, extra: int = 0) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = vocabulary(tokenizer, tokenizer.vocab_size + extra)
    return {key.removeprefix("tokenizer.ggml."): value for key, value in found.items()}


def back(tokenizer: Tokenizer) -> HubTokenizer:
    return from_metadata({f"tokenizer.ggml.{key}": value for key, value in keys(tokenizer).items()})


def changed(tokenizer: Tokenizer, **model: Any) -> HubTokenizer:
    """Another `model`, normalizer or pre_tokenizer in a tokenizer.json."""
    files = tokenizer._files()
    content, config = json.loads(files["tokenizer.json"]), json.loads(files["tokenizer_config.json"])
    for key, value in model.items():
        (content if key in content else content["model"])[key] = value
    return HubTokenizer(json.dumps(content), config)


def trained() -> HubTokenizer:
    return train_bpe(make(9, 1000), 600)


@pytest.mark.parametrize("name", ["trained", "bpe.model", "unigram.model", "cl100k_base.tiktoken"])
def test_read_from_these_keys_alone(name: str) -> None:
    ours = trained() if name == "trained" else Tokenizer.load(FOLDER / name)
    again = back(ours)
    assert [row.tolist() for row in again.encode_many(TEXTS)] == [row.tolist() for row in ours.encode_many(TEXTS)]
    assert (again.bos_id, again.eos_id, again.adds_bos) == (ours.bos_id, ours.eos_id, ours.adds_bos)
    assert again.vocab_size == ours.vocab_size


def test_keys_of_a_sentencepiece_model() -> None:
    """What a GGUF file says of it, but for scores: only their order counts."""
    want = {key.removeprefix("tokenizer.ggml."): value for key, value in gguf_llama().items()}
    found = keys(Tokenizer.load(FOLDER / "bpe.model"), 2)
    assert found["tokens"] == [*want["tokens"], f"[PAD{len(want['tokens'])}]", f"[PAD{len(want['tokens']) + 1}]"]
    assert found["token_type"].tolist() == [*want["token_type"], 5, 5] and len(found["scores"]) == len(found["tokens"])
    for key in ("model", "bos_token_id", "eos_token_id", "unknown_token_id", "add_space_prefix"):
        assert found[key] == want[key], key
    unigram = keys(Tokenizer.load(FOLDER / "unigram.model"))
    want = {key.removeprefix("tokenizer.ggml."): value for key, value in gguf_llama("unigram.model").items()}
    normal = [i for i, kind in enumerate(want["token_type"]) if kind == 1]
    assert unigram["scores"][normal].tolist() == [want["scores"][i] for i in normal]
    assert bytes(unigram["precompiled_charsmap"]) == bytes(each & 255 for each in want["precompiled_charsmap"])


def test_characters_are_merges_of_their_bytes() -> None:
    found = keys(CharTokenizer(" aé\u2019\u201d"), 1)
    assert found["model"] == "gpt2" and found["pre"] == "gpt-2"
    assert found["tokens"] == ["<|endoftext|>", "Ġ", "a", "Ã©", "âĢĻ", "âĢĿ", "[PAD6]"]
    assert found["token_type"].tolist() == [3, 1, 1, 1, 1, 1, 5]
    assert found["merges"] == ["Ã ©", "â Ģ", "âĢ Ļ", "âĢ Ŀ"]
    assert (found["bos_token_id"], found["eos_token_id"], found["add_bos_token"]) == (0, 0, True)


@pytest.mark.parametrize(("pattern", "whole", "name"), [
    ("gpt-2", False, "gpt-2"), ("cl100k", False, "dbrx"), ("cl100k", True, "llama-bpe"), ("qwen2", False, "qwen2"),
    ("o200k", False, "gpt-4o"), ("tekken", True, "tekken"), ("deepseek-v3", False, "deepseek-v3"),
    ("starcoder", False, "starcoder"), ("qwen2", True, "qwen2"),
])  # fmt: skip
def test_the_name_of_a_pattern(pattern: str, whole: bool, name: str) -> None:
    model = json.loads(trained()._files()["tokenizer.json"])["model"]
    content = byte_level(model["vocab"], model["merges"], pattern, {"<|endoftext|>": 0}, whole_words=whole)
    made = made_of(content, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}, "made")
    found = keys(made)
    assert found["pre"] == name
    assert [row.tolist() for row in back(made).encode_many(TEXTS)] == [row.tolist() for row in made.encode_many(TEXTS)]


def test_whole_words_that_no_merge_makes() -> None:
    """Only names with that rule will do: without it the word would be two tokens."""
    model = json.loads(trained()._files()["tokenizer.json"])["model"]
    vocab = {**model["vocab"], "zqzq": len(model["vocab"])}
    ends = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    for pattern, fits in (("cl100k", True), ("qwen2", False)):
        made = made_of(
            byte_level(vocab, model["merges"], pattern, {"<|endoftext|>": 0}, whole_words=True), ends, "made"
        )
        if fits:
            assert keys(made)["pre"] == "llama-bpe" and back(made).encode("zqzq") == made.encode("zqzq")
        else:
            with pytest.raises(TokenizerError, match=r"no pre-tokenizer of llama\.cpp"):
                keys(made)


def test_scores_that_would_join_what_merges_do_not() -> None:
    ours = Tokenizer.load(FOLDER / "bpe.model")
    merges = json.loads(ours._files()["tokenizer.json"])["model"]["merges"]
    with pytest.raises(TokenizerError, match=r"llama.cpp would join .* which no merge of it does"):
        keys(changed(ours, merges=merges[:40] + merges[41:]))


@pytest.mark.parametrize(("change", "reason"), [
    ({"normalizer": {"type": "Lowercase"}}, r"changes text before it is cut \(Lowercase\)"),
    ({"pre_tokenizer": {"type": "Whitespace"}}, "no form for its pre-tokenizer Whitespace"),
    ({"pre_tokenizer": {**BYTES, "add_prefix_space": True}}, "no form for its pre-tokenizer ByteLevel"),
    ({"pre_tokenizer": {**BYTES, "use_regex": False}}, "cuts words as it does"),
    ({"end_of_word_suffix": "</w>"}, "no form for end_of_word_suffix"),
])  # fmt: skip
def test_what_has_no_form_is_written_without(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    """llama.cpp is then given ids; our own reader has the tokenizer as ever."""
    ours = changed(trained(), **change)
    with pytest.raises(TokenizerError, match=reason):
        keys(ours)
    model = Decoder(FAMILIES.get("llama").read({**SETTINGS, "vocab_size": ours.vocab_size}), seed=1)
    with pytest.warns(UserWarning, match=f"llama.cpp will take and give ids of this file, not text: .*{reason}"):
        path = microgpt.LanguageModel(model, ours).export(tmp_path / "m.gguf", "f32")
    metadata = GgufFile(path).metadata
    assert metadata["tokenizer.ggml.model"] == "no_vocab" and "tokenizer.ggml.tokens" not in metadata
    again = microgpt.load(path).tokenizer
    assert [again.encode(text) for text in TEXTS[:50]] == [ours.encode(text) for text in TEXTS[:50]]


def test_tokens_that_only_stand_around_a_text() -> None:
    """As in all-MiniLM-L6-v2: no beginning and end token, but a post-processor that puts [CLS] and [SEP]."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "##s"]
    post = {"type": "TemplateProcessing", "single": [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {each: {"id": each, "ids": [words.index(each)], "tokens": [each]}
                           for each in ("[CLS]", "[SEP]")}}  # fmt: skip
    files = word_piece({word: i for i, word in enumerate(words)}, {}, "words")._files()
    ours = HubTokenizer(json.dumps({**json.loads(files["tokenizer.json"]), "post_processor": post}), {})
    assert (ours.bos_id, ours.eos_id, ours.frame) == (None, None, ([2], [3]))
    found = keys(ours)
    assert (found["bos_token_id"], found["eos_token_id"]) == (2, 3)
    assert found["add_bos_token"] is True and found["add_eos_token"] is True and found["model"] == "bert"
    assert back(ours).frame == ([2], [3]) and back(ours).encode("a cats") == [4, 5, 6]


def test_near_is_told() -> None:
    composed = changed(trained(), normalizer={"type": "NFC"})
    with pytest.warns(UserWarning, match=r"other ids for some texts: it does not compose characters \(NFC\)"):
        assert vocabulary(composed, composed.vocab_size)["tokenizer.ggml.pre"] == "gpt-2"
    meta = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}
    ours = Tokenizer.load(FOLDER / "bpe.model")
    marked = changed(ours, normalizer=None, pre_tokenizer=meta, ignore_merges=False)
    with pytest.warns(UserWarning, match="it puts a space also before a text that begins with one"):
        assert vocabulary(marked, marked.vocab_size)["tokenizer.ggml.add_space_prefix"] is True
    texts = [text for text in TEXTS if text[0] not in " \u2581" and "<user>" not in text and "a<b>" not in text]
    assert [back(marked).encode(text) for text in texts] == [marked.encode(text) for text in texts] and len(texts) > 200
    cut = changed(ours, normalizer=None, pre_tokenizer={**meta, "split": True}, ignore_merges=False)
    with pytest.raises(TokenizerError, match="its Metaspace cuts within tokens"):
        keys(cut)
    with pytest.raises(TokenizerError, match="it has 600 ids, the model 599"):
        vocabulary(trained(), 599)


def test_chats_go_along(tmp_path: Path) -> None:
    ours = trained()
    ours.chat_templates |= {"default": "{{ messages[0]['content'] }}", "tool_use": "{{ tools }}"}
    ours.more_stop_ids = frozenset([5, 6, 7])
    model = Decoder(FAMILIES.get("llama").read({**SETTINGS, "vocab_size": ours.vocab_size}), seed=1)
    again = microgpt.load(microgpt.LanguageModel(model, ours).export(tmp_path / "m.gguf", "f32")).tokenizer
    assert again.chat_templates == ours.chat_templates and again.stop_ids == ours.stop_ids == {0, 5, 6, 7}


def test_every_pattern_has_a_name() -> None:
    """Nothing that GGUF files are read with is lost when they are written: the names lead back to the patterns."""
    from microgpt.tokenizers.ggml_vocab import _NAMES
    from microgpt.tokenizers.patterns import pattern_named

    for key, pattern in PATTERNS.items():
        for name in _NAMES.get(key, (key, None)):
            assert name is None or PATTERNS[pattern_named(name) or ""] == pattern
