"""What models/confined.py runs in a process of its own, where it may take little time and memory.

It is run as a file, without auditkit, torch or transformers, so that it starts in some fifty milliseconds. The template
environment is that of transformers.utils.chat_template_utils (5.23): the same sandbox, filters, functions and tags.

    python -I -S confined_child.py SECONDS BYTES FOLDER_WITH_JINJA2 ...      one job in JSON a line, one answer a line
"""

import json
import re
import sys
from datetime import datetime
from typing import Any


def confine(seconds: int, size: int) -> None:
    """Limit this process to seconds of computing from now on, and bytes of memory, where the system can."""
    try:
        import resource
    except ImportError:  # not on Windows, where the time alone is limited, from outside
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + seconds, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def rendered_lengths(template: str, chats: list[dict]) -> list[int | str]:
    """How many characters a template writes to each chat, or why it writes none.

    Args:
        chats: what transformers renders it with: {"messages", "add_generation_prompt", special tokens, ...}.
    """
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

        def _said(self, caller: Any) -> str:
            return caller()

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
        how: dict = {"ensure_ascii": ensure_ascii, "indent": indent, "separators": separators, "sort_keys": sort_keys}
        return json.dumps(value, **how)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": datetime.now().strftime}
    compiled = environment.from_string(template)
    found: list[int | str] = []
    for chat in chats:
        try:
            found.append(len(compiled.render(**chat)))
        except MemoryError:
            raise
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}"[:300])
    return found


def matched(patterns: list[str], names: list[str]) -> int:
    """How often patterns match names, as peft looks for the modules of an adapter."""
    return sum(re.fullmatch(pattern, name) is not None for pattern in patterns for name in names)


def main() -> None:
    """Do the jobs that stand in stdin, and write what came of each to stdout."""
    seconds, size, *homes = sys.argv[1:]
    sys.path += homes
    for line in sys.stdin.buffer:
        confine(int(seconds), int(size))
        told: dict[str, Any]
        try:
            job = json.loads(line)
            given = job.get("matching")
            told = {"found": matched(**given) if given else rendered_lengths(job["template"], job["chats"])}
        except MemoryError:
            told = {"memory": True}
        except Exception as error:
            told = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
