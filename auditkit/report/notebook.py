"""Texts that a notebook shows: the library's own source, so that the method is never told twice, and quotes."""

import inspect
from collections.abc import Callable

from IPython.display import Code, Markdown


def source_of(function: Callable) -> Code:
    """The source of a function or class, coloured, as the last line of a cell shows it."""
    return Code(inspect.getsource(function), language="python")


def quote(text: str) -> Markdown:
    """A paragraph set off from the rest."""
    return Markdown("> " + text)
