"""YAML as people write it: small, plain, every key once. The one reader of every YAML file and value of the kit.

It is PyYAML's safe loader, which makes nothing but texts, numbers, dates, lists and mappings, with bounds: a file that
would take its parser seconds, gigabytes or its stack is refused in one sentence that names the line.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from auditkit.errors import AuditError

LARGEST = 100_000  # characters of a file; the parser takes some ten microseconds for each
DEEPEST = 40  # levels of lists and mappings
MOST = 20_000  # values, what an alias repeats counted each time
LONGEST = 100  # characters of a number, beyond which Python's conversions slow down or refuse
# what no editor shows: control characters, directions of writing, halves of characters, which no file's name can hold
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def read_yaml(file: Path) -> Any:
    """What a YAML file holds.

    Raises AuditError, with the file's name and the line, for what cannot be read, a key given twice, and a file beyond
    the bounds above; OSError where there is none.
    """
    with file.open("rb") as stream:
        data = stream.read(4 * LARGEST + 1)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        if len(data) <= 4 * LARGEST:
            raise AuditError(f"{file.name}, line {line}: not readable as YAML (it is no text in UTF-8).") from None
        text = "?" * (LARGEST + 1)
    return parse_yaml(text, file.name)


def parse_yaml(text: str, where: str) -> Any:
    """What a text of YAML holds.

    Args:
        where: the file's name, or whatever else the text is called, for messages.

    Raises AuditError as `read_yaml`.

    >>> parse_yaml("[a, 2, 3.5]", "the list")
    ['a', 2, 3.5]
    """
    if len(text) > LARGEST:
        raise AuditError(f"{where}: longer than {LARGEST:,} characters, which no such file needs; is it the right one?")
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise AuditError(
            f"{where}, line {line}: not readable as YAML (the character U+{int(error.character):04X} is not allowed)."
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line_named = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())[:200]
        raise AuditError(f"{where}{line_named}: {_unlike_python(problem)}.") from None


def _unlike_python(problem: str) -> str:
    return problem.removeprefix(OURS) if problem.startswith(OURS) else f"not readable as YAML ({problem})"


OURS = "auditkit: "  # what we refuse ourselves is told in our words alone


def _refused(problem: str, mark: yaml.Mark) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(problem=OURS + problem, problem_mark=mark)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with bounds; a key given twice is refused, of which plain YAML would keep the last."""

    def __init__(self, text: str):
        super().__init__(text)
        self._depth = self._values = 0
        self._within: dict[int, int] = {}  # node -> values in it, for aliases of it

    def compose_node(self, parent: yaml.Node, index: Any) -> yaml.Node:
        mark, alias = self.peek_event().start_mark, self.check_event(yaml.AliasEvent)
        if self._depth >= DEEPEST:
            raise _refused(f"more than {DEEPEST} levels of lists and mappings", mark)
        before, self._depth, self._values = self._values, self._depth + 1, self._values + 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias:
            if id(node) not in self._within:
                raise _refused("an alias stands inside what it repeats", mark)
            self._values += self._within[id(node)]
        else:
            self._within[id(node)] = self._values - before
        if self._values > MOST:
            raise _refused(f"more than {MOST:,} values, aliases counted", mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        plain = node.tag == "tag:yaml.org,2002:str"
        if isinstance(node, yaml.ScalarNode):
            if not plain and len(node.value) > LONGEST:
                raise _refused(f"a number of {len(node.value):,} characters", node.start_mark)
            if unseen := UNSEEN.search(node.value):
                raise _refused(f"a text holds U+{ord(unseen[0]):04X}, which nobody sees; leave it out", node.start_mark)
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except (ValueError, TypeError, AttributeError, KeyError, IndexError, ArithmeticError):
            kind = node.tag.rpartition(":")[2]
            raise _refused(f"{str(node.value)[:40]!r} is no {kind}; text is put in quotes", node.start_mark) from None

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict:
        if isinstance(node, yaml.MappingNode):
            keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and keys[key.value] > 1 and key.value != "<<":
                    raise _refused(f"{key.value[:60]} is given twice; keep one", _last(node, key.value))
        return super().construct_mapping(node, deep)


def _last(node: yaml.MappingNode, key: str) -> yaml.Mark:
    return [name.start_mark for name, _ in node.value if name.value == key][-1]
