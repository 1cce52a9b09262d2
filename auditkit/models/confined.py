"""What comes with a model and is run here, its chat template and the patterns of an adapter, is first tried elsewhere:
in a process of its own, with little time and memory. A template can loop for hours or ask for all memory, and so can a
pattern; neither can read a file or reach a network, for templates run in jinja2's sandbox.
"""

import atexit
import functools
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from auditkit.errors import AuditError
from auditkit.models import confined_child
from auditkit.models.lora import TEXT_PART, WHOLE_TEXT_PART
from auditkit.models.weights import ADAPTER, read_object
from auditkit.text import shortened

SECONDS = 2  # of computing; the largest templates take some milliseconds
WAIT = 30  # seconds until an answer, on however busy a machine
SIZE = 512_000_000  # bytes of memory, the interpreter's included
LONGEST_TEMPLATE, LONGEST_TEXT = 1_000_000, 100_000  # characters, of what is rendered and of what it writes
NOT_TAKEN = "its chat template does not take one question on one image"


def refuse_unruly_template(template: Any, tokens: Mapping[str, str], image: bool = True) -> None:
    """Raise AuditError for a chat template that fails, or takes or writes too much, for one question on one image.

    It is rendered as it will be: about a picture, about none, and with an answer. Each template is tried once in a
    process, whoever asks.

    Args:
        template: the processor's, or the tokenizer's; of several by name, the one called default.
        tokens: the tokenizer's special tokens, by which the template may call them.
        image: whether it is to take a picture; a language model's takes text alone.
    """
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str):
        raise AuditError("its chat template is no text; add the chat_template.jinja of its instruct version.")
    tokens = {name: token for name, token in tokens.items() if isinstance(token, str)}
    if why := _trouble(template, json.dumps(tokens, sort_keys=True), image):
        raise AuditError(why)


@functools.cache
def _trouble(template: str, tokens: str, image: bool) -> str:
    if len(template) > LONGEST_TEMPLATE:
        return f"its chat template has {len(template):,} characters, more than {LONGEST_TEMPLATE:,}."
    text = {"type": "text", "text": "What is it?"}
    asked = {"role": "user", "content": [{"type": "image"}, text] if image else text["text"]}
    alone = {"role": "user", "content": [text] if image else text["text"]}
    answered = {"role": "assistant", "content": [text] if image else text["text"]}
    more = json.loads(tokens) | {"tools": None, "documents": None} | ({} if image else {"enable_thinking": False})
    chats = [
        more | {"messages": messages, "add_generation_prompt": len(messages) == 1}
        for messages in ([asked], [alone], [asked, answered])
    ]
    told = _confined({"template": template, "chats": chats})
    if "found" not in told:
        return f"{NOT_TAKEN} ({told['why']})."
    first, *_ = told["found"]  # the others may be refused by templates that are well
    if isinstance(first, str):
        return f"{NOT_TAKEN} ({first})."
    longest = max(length for length in told["found"] if isinstance(length, int))
    if longest > LONGEST_TEXT:
        return (
            f"its chat template writes {longest:,} characters to one question; it is not that of its instruct version."
        )
    return ""


def refuse_endless_patterns(folder: Path, names: Sequence[str]) -> None:
    """Raise AuditError for an adapter whose patterns take too long to be looked for in a model, or are none.

    Args:
        folder: the adapter's.
        names: the model's modules.
    """
    config = read_object(folder / ADAPTER, folder)
    wanted = [config.get(key) for key in ("target_modules", "exclude_modules")]
    patterns = [pattern for pattern in wanted if isinstance(pattern, str)]
    layers = config.get("layers_pattern")
    layers = layers if isinstance(layers, list) else [layers] if layers else []
    patterns += [rf".*\.[^.]*{layer}\.(\d+)\..*" for layer in layers]
    for key in ("rank_pattern", "alpha_pattern"):
        own = config.get(key)
        patterns += [rf"(.*\.)?({module})$" for module in (own if isinstance(own, dict) else {})]
    patterns = [pattern for pattern in patterns if pattern not in (TEXT_PART, WHOLE_TEXT_PART)]  # our own
    told = _confined({"matching": {"patterns": patterns, "names": list(names)}}) if patterns else {"found": 0}
    if "found" not in told:
        raise AuditError(
            f"the adapter in {folder} cannot be put on: looking for its modules {shortened(patterns, 60)} fails "
            f"({told['why']}); name them in a list in its {ADAPTER}."
        )


class _Child:
    """The other process, which does one job after another for this one: starting it costs more than a job."""

    def __init__(self) -> None:
        homes = {str(Path(spec.origin).parents[1]) for name in ("jinja2", "markupsafe")
                 if (spec := importlib.util.find_spec(name)) and spec.origin}  # fmt: skip
        command = [sys.executable, "-I", "-S", confined_child.__file__, str(SECONDS), str(SIZE), *sorted(homes)]
        how: dict = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        # A kernel that is told to end terminates its group first and waits for it, which for a process that we do not
        # wait for takes seconds. This one ends with us, or when there is nobody left to write to it.
        how["start_new_session"] = True
        self.process = subprocess.Popen(command, **how)
        self.owner = os.getpid()

    def answer(self, job: dict) -> bytes:
        """What it says of a job; nothing where it was ended by its limits, or by us after WAIT seconds."""
        assert self.process.stdin and self.process.stdout
        late = threading.Timer(WAIT, self.process.kill)
        late.start()
        try:
            self.process.stdin.write(json.dumps(job).encode() + b"\n")
            self.process.stdin.flush()
            return self.process.stdout.readline()
        except OSError:  # it ended before it had read all
            return b""
        finally:
            late.cancel()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


_children: list[_Child] = []  # one at most


@atexit.register
def _end_child() -> None:
    while _children:
        child = _children.pop()
        if child.owner == os.getpid():  # not of the process that this one was forked from
            child.end()


def _confined(job: dict) -> dict:
    """{"found": ...} of confined_child.py, or {"why": there is nothing}."""
    if not _children or _children[0].owner != os.getpid():
        _children[:] = [_Child()]
    said = _children[0].answer(job)
    if not said:
        _end_child()
        return {"why": f"it takes more than {SECONDS} seconds, or more memory than {SIZE // 1_000_000} MB"}
    told = json.loads(said)
    if "memory" in told:
        return {"why": f"it takes more than {SIZE // 1_000_000} MB of memory"}
    return told if "found" in told else {"why": told["error"]}
