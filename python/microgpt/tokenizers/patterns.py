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
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_V3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Runs of spaces in powers of two.
_JAIS2 = _CL100K.replace(
    r"\s+(?!\S)|\s+", "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4, "1,2")) + r"|\s{1}"
)

# DeepSeek's list of letters with an upper and a lower case, as code points: written out, some would not survive a
# normalization of this file.
_CASED = "".join(
    "-".join(rf"\x{{{code}}}" for code in each.split("-"))
    for each in """41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C
    38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77
    1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE
    1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126
    2128 212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D
    A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3
    104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943""".split()
)

PATTERNS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "cl100k": (_CL100K,),
    "llama-bpe": (_CL100K,),
    "qwen2": (_QWEN2,),
    "o200k": (_O200K,),
    "tekken": (_cased("", r"\p{N}", r"[\r\n/]*"),),
    # What llama.cpp does to a file that names none.
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"),
    "starcoder": (r"\p{N}", _GPT2),
    "deepseek-llm": (
        r"[\r\n]",
        rf"\s?[{_CASED}]+",
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
    "deepseek-v3": (r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", _V3),
    "bloom": (_BLOOM,),
    "viking": (_BLOOM, r"\p{N}"),
    "jais-2": (_JAIS2,),
    "bailingmoe": (_QWEN2.replace(r"\s*[\r\n]+", r"\s*[\r\n]"),),
    "seed-coder": (_QWEN2.replace(r"[^\s\p{L}\p{N}]+[\r\n]*", r"[^\s\p{L}\p{N}\r\n]+"),),
    "qwen35": (
        _QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{M}\p{N}]+"),
    ),
    "tiny_aya": (r"\d{1,3}(?=(?:\d{3})*\b)", _O200K),
}
# Other names of tokenizer.ggml.pre for the same.
ALIASES = {
    "gpt2": "gpt-2", "mpt": "gpt-2", "olmo": "gpt-2", "jais": "gpt-2", "phi-2": "gpt-2", "jina-es": "gpt-2",
    "jina-de": "gpt-2", "jina-v1-en": "gpt-2", "jina-v2-es": "gpt-2", "jina-v2-de": "gpt-2", "jina-v2-code": "gpt-2",
    "roberta-bpe": "gpt-2", "exaone4": "gpt-2", "trillion": "gpt-2", "gigachat": "gpt-2", "granite-docling": "gpt-2",
    "a.x-4.0": "gpt-2", "mellum": "gpt-2", "modern-bert": "gpt-2",
    "llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe", "falcon-h1": "llama-bpe",
    "pixtral": "llama-bpe", "midm-2.0": "llama-bpe", "lfm2": "llama-bpe", "jina-v5-nano": "llama-bpe",
    "dbrx": "llama-bpe", "smaug-bpe": "llama-bpe", "chatglm-bpe": "llama-bpe", "glm4": "llama-bpe",
    "stablelm2": "qwen2", "deepseek-r1-qwen": "qwen2", "hunyuan": "qwen2", "megrez": "qwen2", "kormo": "qwen2",
    "f2llmv2": "qwen2", "solar-open": "qwen2", "grok-2": "qwen2",
    "refact": "starcoder", "command-r": "starcoder", "smollm": "starcoder", "codeshell": "starcoder",
    "exaone": "starcoder", "minerva-7b": "starcoder",
    "gpt-4o": "o200k", "llama4": "o200k", "kanana2": "o200k", "minimax-m2": "o200k",
    "hunyuan-dense": "deepseek-v3", "joyai-llm": "deepseek-v3",
    "bailingmoe2": "bailingmoe", "llada-moe": "bailingmoe",
    "poro-chat": "bloom", "gpt3-finnish": "bloom",
}  # fmt: skip


def pattern_named(name: str) -> str | None:
    """The key of PATTERNS for a name of tokenizer.ggml.pre; None for one that is not known here."""
    name = ALIASES.get(name, name)
    return name if name in PATTERNS else None
