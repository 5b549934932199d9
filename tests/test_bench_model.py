"""`microgpt bench MODEL`: cases, figures, llama.cpp's programs (played by scripts), errors."""

from __future__ import annotations

import importlib.util
import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from microgpt.bench import llama, model, ours_model, paired, plot
from microgpt.errors import ChildError, ConfigError
from microgpt.models.quantized import Scheme, quantize_decoder
from tests.cli_tools import run, shell
from tests.format_tools import a_model
from tests.variants import VARIANTS, make

SETTINGS: dict[str, Any] = {
    "dtypes": ("float32",), "threads": 1, "peers": {}, "python": sys.executable, "rounds": 3, "seconds": 0.01,
    "timeout": 60.0, "path": Path("m"), "quantize": None, "kv_dtype": None, "prompts": (128, 512), "tokens": 128,
    "batches": (8, 16), "past": 16, "llama_bench": None, "gguf": None, "folder": None,
}  # fmt: skip


def program(path: Path, text: str) -> Path:
    """A script that plays one of llama.cpp's programs."""
    path.write_text(f"#!{sys.executable}\nimport sys\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_cases_are_prompts_one_stream_and_several() -> None:
    found = model.cases(model.Settings(**SETTINGS))
    assert [case.name for case in found] == ["pp128", "pp512", "tg128", "tg32 x 8", "tg32 x 16"]
    assert [case.past for case in found] == [0, 0, 0, 16, 16]
    assert found[3].label == "32 tokens, 8 sequences"
    assert [case.name for case in model.cases(model.Settings(**{**SETTINGS, "tokens": 0}))] == ["pp128", "pp512"]


def test_lists_of_numbers() -> None:
    assert model.numbers("--x", "128, 512", 1000) == (128, 512)
    assert model.numbers("--x", "none", 1000) == () == model.numbers("--x", "0", 1000)
    for wrong in ("a", "1001", "-1", "1.5"):
        with pytest.raises(ConfigError, match="--x: expected numbers from 1 to 1,000"):
            model.numbers("--x", wrong, 1000)


def test_a_token_reads_the_weights_once_and_every_cache() -> None:
    case = model.Case("generate", 10, 4, 16)
    results: Any = {"microgpt": {"median": 0.5, "min": 0.4, "max": 0.8}, "llama.cpp": {"error": "no"}}
    row = model.row_of(case, {"bytes": 1_000_000}, {"flops": 10**9, "cache_bytes": 200_000}, (results, 40e6, 0.0))
    assert row["bytes_per_token"] == 300_000  # 4 tokens are drawn of each reading
    ours = row["results"]["microgpt"]
    assert ours["tokens_per_second"] == 80 and ours["bytes_per_second"] == 24e6 and ours["share"] == 0.6
    text = "\n".join(model.lines(row))
    assert "80.0 [50.0, 100.0]" in text and "0.3 MB a token" in text and "60% of" in text and "llama.cpp: no" in text
    with pytest.raises(ChildError, match="32 tokens failed: broken"):
        model.row_of(model.Case("generate", 32), {}, {}, ({"microgpt": {"error": "broken"}}, 1.0, 0.0))


def test_bytes_read_leave_out_tables_of_which_a_row_is_taken() -> None:
    decoder = a_model()
    tables = decoder.embed.weight.data.nbytes if decoder.head is not None else 0
    everything = sum(parameter.data.nbytes for parameter in decoder.parameters())
    assert ours_model.read_bytes(decoder) == everything - tables
    moe = make(VARIANTS["moe_softmax"])  # 2 experts of 4
    whole = sum(each.nbytes for each in moe.arrays().values())
    experts = sum(each.nbytes for each in moe.arrays().values() if each.ndim == 3)
    assert ours_model.read_bytes(moe) == whole - experts // 2
    assert ours_model.read_bytes(moe, 2) == whole - experts // 4
    assert ours_model.kind_of(decoder) == "float32"
    quantize_decoder(decoder, Scheme.named("int8_channel"))
    assert ours_model.kind_of(decoder) in ("int8_channel", "int8 group 32")
    assert ours_model.read_bytes(decoder) < everything


@pytest.mark.parametrize(
    "kind, tokens, sequences, past", [("prompt", 5, 1, 0), ("generate", 4, 1, 0), ("generate", 3, 2, 4)]
)
def test_a_step_can_be_run_again(kind: str, tokens: int, sequences: int, past: int) -> None:
    step = ours_model.prepare(a_model(), kind, tokens, sequences, past)
    for _ in range(3):
        step()


def test_llama_cpp_is_asked_with_the_same_case(tmp_path: Path) -> None:
    says = "print({!r} if 'jsonl' not in sys.argv else '')\nopen(__file__ + '.args', 'w').write(' '.join(sys.argv[1:]))"
    bench = program(tmp_path / "llama-bench", says.format(json.dumps([{"avg_ts": 200.0}])))
    assert llama.find(str(tmp_path)) == str(bench) == llama.find(str(bench))
    theirs = llama.LlamaCpp(str(bench), Path("m.gguf"), 2, "int8", 20.0)
    assert theirs.ask({"do": "case", "kind": "prompt", "tokens": 100, "sequences": 1, "past": 0}) == {}
    assert theirs.ask({"do": "run", "seconds": 1.0})["seconds"] == 0.5
    given = (tmp_path / "llama-bench.args").read_text()
    assert given == "-m m.gguf -t 2 -ctk q8_0 -ctv q8_0 -fa 1 -p 100 -n 0 -r 1 -o json"
    several = {"do": "case", "kind": "generate", "tokens": 10, "sequences": 4, "past": 6}
    assert "llama-batched-bench is not there" in theirs.ask(several)["error"]
    program(tmp_path / "llama-batched-bench", f"print('noise')\nprint({json.dumps({'speed_tg': 80.0})!r})")
    assert theirs.ask(several) == {}
    assert theirs.ask({"do": "run", "seconds": 1.0})["seconds"] == 0.5


@pytest.mark.parametrize("says, message", [
    ("sys.stderr.write('no such model'); sys.exit(3)", "llama-bench ended with code 3: no such model"),
    ("print('not JSON')", "Error"),
    ("import time; time.sleep(30)", "TimeoutExpired"),
    ("print('[]')", "IndexError"),
])  # fmt: skip
def test_a_llama_cpp_that_fails_is_told(tmp_path: Path, says: str, message: str) -> None:
    theirs = llama.LlamaCpp(str(program(tmp_path / "llama-bench", says)), Path("m"), 1, None, 1.0)
    theirs.ask({"do": "case", "kind": "prompt", "tokens": 1, "sequences": 1, "past": 0})
    assert message in theirs.ask({"do": "run", "seconds": 1.0})["error"]


def test_time_of_processes_that_ended_is_ours(tmp_path: Path) -> None:
    elsewhere = paired.Elsewhere([])
    says = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    subprocess.run([str(program(tmp_path / "busy", says))], check=True)
    now = elsewhere._now()
    assert now is None or elsewhere._start is None or now[2] - elsewhere._start[2] >= 0.25


def test_the_command_line(tmp_path: Path) -> None:
    import microgpt
    from tests.test_quantized import model_of, small

    folder = tmp_path / "m"
    model_of(small()).save(folder)
    assert microgpt.load(folder).decoder.config.vocab_size == 70
    sizes = ["--prompts", "8", "--tokens", "8", "--batches", "2", "--past", "4", "--seconds", "0.01"]
    bench = program(tmp_path / "llama-bench", f"print({json.dumps([{'avg_ts': 100.0}])!r})")
    (tmp_path / "m.gguf").write_text("")
    done = shell("bench", str(folder), "--quantize", "int4", "--kv-dtype", "int8", "--json", *sizes, "--compare",
                 "llama.cpp", "--llama-bench", str(bench), "--gguf", str(tmp_path / "m.gguf"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["case"] for row in found["rows"]] == ["pp8", "tg8", "tg2 x 2"]
    assert found["model"]["kind"].startswith("int") and found["model"]["kv_dtype"] == "int8"
    assert found["rows"][1]["results"]["llama.cpp"]["ratio"] > 0 and "error" in found["rows"][2]["results"]["llama.cpp"]
    assert found["rows"][1]["results"]["microgpt"]["share"] > 0
    if importlib.util.find_spec("matplotlib") is not None:  # extra `plot`
        plot.draw(found, tmp_path / "rates.svg")
        assert (tmp_path / "rates.svg").stat().st_size > 1000
    for arguments, message in (
        (["--compare", "llama.cpp", "--llama-bench", str(bench)], "needs --gguf FILE"),
        (["--compare", "llama.cpp", "--llama-bench", "/nowhere"], "expected the program llama-bench"),
        (["--compare", "vllm"], "--compare: unknown 'vllm'"),
        (["--tokens", "-1"], "--tokens: expected 0 to"),
        (["--quantize", "int3"], "unknown type 'int3'"),
        (["--prompts", "x"], "--prompts: expected numbers"),
    ):
        done2 = run("bench", str(folder), *arguments)
        assert done2.exit_code == 2 and message in done2.stderr, (arguments, done2.stderr)
    assert run("bench", "trian").exit_code == 2
