"""How byte-level vocabularies cut text into words: regular expressions, applied one after the other to what is left.

They define the vocabularies as much as the merges do; the names are tiktoken's and those of GGUF's tokenizer.ggml.pre.
"""

from __future__ import annotations

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _cl100k(digits: str) -> str:
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cased(ending: str, digits: str, breaks: str) -> str:
    """Words in lower case with at most a capital part before, as in o200k."""
    edge = r"[^\r\n\p{L}\p{N}]?"
    return (
        f"{edge}{_UPPER}*{_LOWER}+{ending}|{edge}{_UPPER}+{_LOWER}*{ending}|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+{breaks}|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_CL100K, _QWEN2 = _cl100k(r"\p{N}{1,3}"), _cl100k(r"\p{N}")
_O200K = _cased(_ENDING, r"\p{N}{1,3}", r"[\r\n/]*")

PATTERNS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "cl100k": (_CL100K,),
    "llama-bpe": (_CL100K,),
    "qwen2": (_QWEN2,),
    "o200k": (_O200K,),
    "tekken": (_cased("", r"\p{N}", r"[\r\n/]*"),),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"),
    "starcoder": (r"\p{N}", _GPT2),
    "deepseek-llm": (
        r"[\r\n]",
        r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
        r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
        r"\s+$",
        r"[一-龥ࠀ-一가-퟿]+",
        r"\p{N}+",
    ),
    "deepseek-coder": (
        r"[\r\n]",
        r"\s?\p{L}+",
        r"\s?\p{P}+",
        r"[一-龥ࠀ-一가-퟿]+",
        r"\p{N}",
    ),
    "deepseek-v3": (
        r"\p{N}{1,3}",
        r"[一-龥぀-ゟ゠-ヿ]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "bloom": (r" ?[^(\s|.,!?…。，、।۔،)]+",),
}
# Other names of tokenizer.ggml.pre for the same.
ALIASES = {
    "gpt2": "gpt-2", "mpt": "gpt-2", "olmo": "gpt-2", "jais": "gpt-2", "phi-2": "gpt-2", "jina-es": "gpt-2",
    "jina-de": "gpt-2", "jina-v2-es": "gpt-2", "jina-v2-de": "gpt-2", "jina-v2-code": "gpt-2", "roberta-bpe": "gpt-2",
    "exaone4": "gpt-2", "trillion": "gpt-2", "gigachat": "gpt-2", "granite-docling": "gpt-2",
    "llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe", "falcon-h1": "llama-bpe",
    "pixtral": "llama-bpe", "midm-2.0": "llama-bpe", "lfm2": "llama-bpe", "dbrx": "llama-bpe", "smaug-bpe": "llama-bpe",
    "chatglm-bpe": "llama-bpe", "glm4": "llama-bpe",
    "stablelm2": "qwen2", "deepseek-r1-qwen": "qwen2", "hunyuan": "qwen2", "megrez": "qwen2",
    "refact": "starcoder", "command-r": "starcoder", "smollm": "starcoder", "codeshell": "starcoder",
    "exaone": "starcoder", "minerva-7b": "starcoder",
    "gpt-4o": "o200k", "llama4": "o200k",
    "poro-chat": "bloom", "gpt3-finnish": "bloom",
}  # fmt: skip


def pattern_named(name: str) -> str | None:
    """The key of PATTERNS for a name of tokenizer.ggml.pre; None for one that is not known here."""
    name = ALIASES.get(name, name)
    return name if name in PATTERNS else None
