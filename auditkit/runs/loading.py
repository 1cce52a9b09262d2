"""How long models took to load in this process: what a stage pays once, however many pictures it sees."""

import functools
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Loaded = TypeVar("Loaded")

loads: list[dict] = []  # {"model": the text that names it, "at": when it was there, "seconds"}
_begun: list[float] = []  # more than one while a model loads another


def timed_loading(load: Callable[Given, Loaded]) -> Callable[Given, Loaded]:
    """The same loader, which notes in `loads` what it loaded and how long that took."""

    @functools.wraps(load)
    def timed(*given: Given.args, **named: Given.kwargs) -> Loaded:
        _begun.append(time.monotonic())
        try:
            return load(*given, **named)
        finally:
            seconds = time.monotonic() - _begun.pop()
            if not _begun:
                at = datetime.now(UTC).isoformat(timespec="milliseconds")
                loads.append({"model": str(given[0] if given else ""), "at": at, "seconds": round(seconds, 2)})

    return timed
