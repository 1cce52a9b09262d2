"""The library's own source, shown in a notebook: the method stands there in the words it runs in."""

import inspect
from collections.abc import Callable

from IPython.display import Code


def source_of(function: Callable) -> Code:
    """The source of a function or class, coloured, as the last line of a cell shows it."""
    return Code(inspect.getsource(function), language="python")
