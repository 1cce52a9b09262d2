"""Numbers, times and names as people read them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping


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


def duration(seconds: float) -> str:
    """'1 min 02 s'."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def slug(key: str) -> str:
    """A picture's key as a file name: 'audit/00012' -> 'audit-00012'."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", key).strip("-.") or "picture"


def short_error(error: Exception) -> str:
    """The first sentence or so of an error, for a message of one line."""
    return str(error).strip().split("\n")[0][:200].rstrip(". ")


def nearest(word: object, known: Iterable[str]) -> str:
    """The known word that is spelt most like this one, "" where none is near: for "did you mean ...?".

    >>> nearest("grpo_step", ["grpo_steps", "seed"]), nearest("colour", ["seed"])
    ('grpo_steps', '')
    """
    return next(iter(difflib.get_close_matches(str(word), list(known), 1)), "")
