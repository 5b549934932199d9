"""The process that renders chat templates. It knows nothing of microgpt: requests come on stdin, answers go to stdout.

A message is its length in 8 bytes (little-endian) and JSON. Argument: the module path of the process that started it.
"""

import datetime
import json
import signal
import sys
from typing import Any

CPU_SECONDS = 0.25  # for compiling and rendering
MEMORY = 32 << 20  # bytes above what the process has when it starts, and
MEMORY_FOR_INPUT = 24  # times the request
OUTPUT = 1 << 20  # characters, and
OUTPUT_FOR_INPUT = 4  # times the request
CACHED = 32  # compiled templates


def main() -> None:
    """Answer requests until stdin ends."""
    sys.path[:] = json.loads(sys.argv[1])
    try:
        environment = make_environment()
    except ImportError:
        sys.exit(3)
    compiled: dict[str, Any] = {}
    base = _limit_files()
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while len(head := source.read(8)) == 8:
        size = int.from_bytes(head, "little")
        _limit_memory(base + MEMORY + MEMORY_FOR_INPUT * size)
        try:
            answer = _answer(environment, compiled, json.loads(source.read(size)), OUTPUT + OUTPUT_FOR_INPUT * size)
        except MemoryError:
            answer = {"error": f"it needs more than {MEMORY >> 20} MiB"}
        data = json.dumps(answer).encode()
        sink.write(len(data).to_bytes(8, "little") + data)
        sink.flush()


def _answer(environment: Any, compiled: dict[str, Any], request: dict[str, Any], most: int) -> dict[str, Any]:
    import jinja2

    text = request["template"]
    # The default action of SIGPROF ends the process, also inside a long call that Python cannot interrupt.
    _limit_time(CPU_SECONDS)
    try:
        template = compiled.get(text)
        if template is None:
            if len(compiled) >= CACHED:
                compiled.clear()
            template = compiled[text] = environment.from_string(text)
        parts, length = [], 0
        for part in template.generate(**request["values"]):
            parts.append(part)
            length += len(part)
            if length > most:
                return {"error": f"it writes more than {most} characters"}
        return {"text": "".join(parts)}
    except Refusal as error:
        return {"refused": str(error)}
    except RecursionError:
        return {"error": "it is nested too deeply"}
    except jinja2.TemplateSyntaxError as error:
        return {"error": f"line {error.lineno}: {error.message}"}
    except MemoryError:
        raise
    except Exception as error:  # a template can raise anything; what it says is data
        return {"error": f"{type(error).__name__}: {error}"[:2000]}
    finally:
        _limit_time(0)


class Refusal(Exception):
    """What a template says by raise_exception."""


def make_environment() -> Any:
    """Jinja as Hugging Face sets it up for chat templates."""
    # Also what is imported late, since no file can be opened then.
    import pprint  # noqa: F401
    import textwrap  # noqa: F401
    import unicodedata  # noqa: F401

    import jinja2.debug  # noqa: F401
    from jinja2 import ext, nodes, sandbox, utils

    class Generation(ext.Extension):
        """``{% generation %}`` marks what the model writes; here it is written like everything else."""

        tags = {"generation"}  # noqa: RUF012 - jinja's own form

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    class Namespace(utils.Namespace):
        def __init__(*args: Any, **values: Any) -> None:  # so that a template may name a value "self"
            given = dict(*args[1:], **values)
            for name in given:
                _plain_name(name)
            utils.Namespace.__init__(args[0], given)

        def __setitem__(self, name: Any, value: Any) -> None:
            _plain_name(name)
            super().__setitem__(name, value)

    def raise_exception(message: Any) -> None:
        raise Refusal(str(message))

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(form: str) -> str:
        return datetime.datetime.now().strftime(form)

    class Dict:
        """`dict` without the class itself, whose attributes lead elsewhere."""

        def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
            return dict(*args, **values)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals.update(
        raise_exception=raise_exception, strftime_now=strftime_now, namespace=Namespace, dict=Dict()
    )
    environment.from_string("{{ 'x'|center(3) }}{{ strftime_now('%Y') }}").render()
    return environment


def _plain_name(name: Any) -> None:
    import jinja2

    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace may not hold {name!r}")


def _limit_files() -> int:
    """No file or socket can be opened from now on. Bytes of address space in use, 0 where they cannot be limited."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[0])
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        return pages * resource.getpagesize()
    except (ImportError, OSError, ValueError):
        return 0


def _limit_time(seconds: float) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory(most: int) -> None:
    if most > MEMORY + MEMORY_FOR_INPUT:
        try:
            import resource

            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (most if hard < 0 else min(most, hard), hard))
        except (ImportError, OSError, ValueError):
            return


if __name__ == "__main__":
    main()
