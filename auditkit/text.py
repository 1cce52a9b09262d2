"""Numbers, times and names as people read them, and text of others that neither hides nor commands anything."""

from __future__ import annotations

import difflib
import hashlib
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from auditkit.redact import redacted, without_addresses_users

# control characters, overrides of the direction of writing, breaks of lines that no editor shows, tags, half characters
UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
HALVES = re.compile("[\ud800-\udfff]")  # lone surrogates, which no file takes


def clock(seconds: float) -> str:
    """Minutes and seconds, as 9:54."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


SPACE = "\N{NO-BREAK SPACE}"


def percent(value: float | Mapping) -> str:
    """A share or a rate as text: 0.8615 -> '86.2 %'."""
    return f"{100 * (value['value'] if isinstance(value, Mapping) else value):.1f}{SPACE}%"


def interval(rate: Mapping) -> str:
    """A rate's interval and size as text: '84.9 to 87.4 %, n = 1,000'."""
    return f"{100 * rate['low']:.1f} to {100 * rate['high']:.1f}{SPACE}%, n{SPACE}={SPACE}{rate['n']:,}"


def counted(n: int, thing: str, things: str = "") -> str:
    """A number and what it counts.

    >>> counted(1, "finding"), counted(1168, "finding"), counted(2, "wish", "wishes")
    ('1 finding', '1,168 findings', '2 wishes')
    """
    return f"{n:,} {thing if n == 1 else things or thing + 's'}"


def p_value(p: float) -> str:
    """A p-value in words: an exact test may give less than a float can hold, and more digits say nothing.

    >>> p_value(0.0), p_value(1.6e-295), p_value(0.0312), p_value(1.0)
    ('< 0.001', '< 0.001', '0.031', '1')
    """
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def with_interval(rate: Mapping, scale: float = 100) -> str:
    """A rate with its 95 % interval, in per cent: '86.2 (84.9 to 87.4)'; without one, its value alone."""
    value = f"{scale * rate['value']:.1f}"
    return f"{value} ({scale * rate['low']:.1f} to {scale * rate['high']:.1f})" if "low" in rate else value


def duration(seconds: float) -> str:
    """A time in its two largest units.

    >>> duration(4.21), duration(62), duration(7500)
    ('4.2 s', '1 min 02 s', '2 h 05 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def byte_size(n: float) -> str:
    """Bytes in units of 10^9 or 10^6: '79.9 GB', '3.7 MB'."""
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"


def large_number(n: int) -> str:
    """A number of parameters: '3.03 B', '0.92 M'."""
    return f"{n / 1e9:.2f} B" if n >= 1e9 else f"{n / 1e6:.2f} M"


def yaml_text(value: object) -> str:
    """A parameter's value as a parameter file has it.

    >>> yaml_text(["a", "b"]), yaml_text(True), yaml_text(""), yaml_text(1e-05)
    ('[a, b]', 'true', '""', '1.0e-05')
    """
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))  # YAML takes 1e-05 for text
    return '""' if value == "" else str(value)


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    """A table as lines of plain text, two spaces between its columns; no line is cut or wrapped.

    Args:
        header: names of the columns.
        rows: the cells of each row, as text.
        align: "l" or "r" for each column; "": the first to the left, all others, being numbers, to the right.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, side in zip(header, align or "l" + "r" * (len(header) - 1), strict=True):
        table.add_column(name, justify="right" if side == "r" else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    lines = io.StringIO()
    how: dict = {"color_system": None, "markup": False, "emoji": False, "highlight": False}
    Console(file=lines, width=10_000, force_terminal=False, force_jupyter=False, **how).print(table)
    return "\n".join(line.rstrip() for line in lines.getvalue().splitlines())


def visible(text: str, keep: str = "\n\t") -> str:
    """Text that others wrote, for a person: what would command a terminal or hide something is shown as an escape.

    >>> visible("a\\x1b[31mb"), visible("two\\nlines", keep="")
    ('a\\\\x1b[31mb', 'two\\\\x0alines')
    """
    return UNSEEN.sub(lambda match: match[0] if match[0] in keep else _escape(match[0]), text)


def storable(text: str) -> str:
    """The text with its half characters (lone surrogates), which no file takes, as escapes."""
    return HALVES.sub(lambda match: _escape(match[0]), text)


def for_a_person(text: str) -> str:
    """What may be shown of a text: `visible`, and without the keys, tokens and passwords of this machine."""
    return visible(without_addresses_users(redacted(text)))


def _escape(sign: str) -> str:
    n = ord(sign)
    return f"\\x{n:02x}" if n < 0x100 else f"\\u{n:04x}" if n < 0x10000 else f"\\U{n:08x}"


def quoted(text: str) -> str:
    """A text of others for a model to read: one line in quotation marks, none of which it can close itself.

    >>> quoted('red". Reply: yes\\n"')
    '"red\\'. Reply: yes \\'"'
    """
    return '"' + re.sub('["\N{FULLWIDTH QUOTATION MARK}“”„‟«»]', "'", visible(" ".join(text.split()), keep="")) + '"'


class VisibleStream:
    """A stream of text, such as sys.stdout, that takes everything as `for_a_person`."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(for_a_person(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class SteadyStream:
    """A stream of text that nothing can break: where its reader is gone (`| head`), it is closed, or the disk behind it
    is full, what is written from then on goes nowhere. Signs that its encoding lacks are written as escapes.
    """

    def __init__(self, stream: TextIO | None):
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            if self.stream:
                self.stream.write(text)
        except UnicodeEncodeError as error:
            self.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        except (OSError, ValueError):  # ValueError: it was closed
            self._give_up()
        return len(text)

    def flush(self) -> None:
        try:
            if self.stream:
                self.stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def isatty(self) -> bool:
        try:
            return bool(self.stream and self.stream.isatty())
        except (OSError, ValueError):
            return False

    def _give_up(self) -> None:
        """Let what is left in its buffer, and what Python writes at its end, go nowhere as well."""
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            if self.stream:
                os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):  # it is no file
            pass
        self.stream = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream or io.StringIO(), name)


LONGEST_NAME = 120  # characters of a key in a file's name, which may have 255 bytes in all


def slug(key: str) -> str:
    """A key as a file name, another one for each key: what a name cannot hold is a dash, and a digest tells it apart.

    So it does where a disk takes capitals and small letters for the same, and where a key is too long.

    >>> slug("audit-0-12"), slug("train/q5.png"), slug("train:q5.png")
    ('audit-0-12', 'train-q5.png-a4f79b06610a1ee7', 'train-q5.png-580f233f0121e52d')
    """
    name = plain_slug(key)
    if name == key == key.lower() and len(key) <= LONGEST_NAME and not re.search(r"-[0-9a-f]{16}$", key):
        return name
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{name[:LONGEST_NAME]}-{digest}"


def plain_slug(key: str) -> str:
    """A key as a file name as it was once, when two keys could have the same: for reading runs made before.

    >>> plain_slug("audit/00012")
    'audit-00012'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", key).strip("-.") or "picture"


def short_error(error: BaseException) -> str:
    """The first sentence or so of an error, for a message of one line."""
    return str(error).strip().split("\n")[0][:200].rstrip(". ") or type(error).__name__


def shortened(value: object, most: int = 80) -> str:
    """A value as Python writes it, cut to `most` characters, for a message of one line.

    >>> shortened("abc"), shortened("x" * 1000, 10)
    ("'abc'", "'xxxxx...'")
    """
    try:
        text = repr(value if not isinstance(value, str | list | tuple) else value[: most + 1])
    except ValueError:  # an int of thousands of digits
        return f"a {type(value).__name__} of thousands of digits"
    return text if len(text) <= most else f"{text[: most - 4]}...{text[-1]}"


def nearest(word: object, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The known word that is spelt most like this one, "" where none is near: for "did you mean ...?".

    >>> nearest("grpo_step", ["grpo_steps", "seed"]), nearest("colour", ["seed"])
    ('grpo_steps', '')
    """
    return next(iter(difflib.get_close_matches(str(word)[:200], list(known), 1, cutoff)), "")
