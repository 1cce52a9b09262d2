"""The two ways into a notebook, for tables and for texts; and the library's own source, so the method is told once.

In a trusted notebook HTML runs with the rights of the Jupyter server, and Markdown may hold HTML. So whatever a model,
a server, a file or a stranger wrote goes through `escaped_table` or `quote`: both make their HTML here and escape every
text in it, and no page takes the text for mathematics, whose commands can make links. A test refuses any other way.
"""

import inspect
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import matplotlib
import pandas as pd
from IPython.display import Code

from auditkit.text import text_table, visible

AS_IT_IS = "tex2jax_ignore mathjax_ignore"  # classes that keep MathJax 2 and 3 away from a text
ROWS = 60  # of a table that are shown
NOTHING = "nothing to show"
How = str | Callable[[object], str]  # a format, such as "{:.0%}", or what makes a text of a value


@dataclass(frozen=True, eq=False, repr=False)
class Table:
    """A table as a notebook shows it; `data` is what it holds.

    Args:
        data: names of rows and columns may come from others as well as the cells.
        formats: column -> how its values are written; without one a number is rounded to three places.
        index: whether the names of the rows are shown.
        shaded: numbers from 0 to 1 get a background from red to green.
    """

    data: pd.DataFrame
    formats: Mapping[Any, How] = field(default_factory=dict)
    index: bool = True
    shaded: bool = False

    def _repr_html_(self) -> str:
        rows, levels = self.data.head(ROWS), self.data.index.nlevels if self.index else 0
        right = [
            pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind) for kind in self.data.dtypes
        ]
        sides = [*["left"] * levels, *("right" if one else "left" for one in right)]
        columns = [*(self.data.index.names if levels else []), *self.data.columns]
        above = "".join(
            f'<th style="text-align:{side}">{_escaped(_text(name))}</th>'
            for side, name in zip(sides, columns, strict=True)
        )
        if self.data.columns.name is not None and not isinstance(self.data.columns, pd.MultiIndex):
            what = f'<th colspan="{max(1, len(self.data.columns))}">{_escaped(_text(self.data.columns.name))}</th>'
            above = f'<th colspan="{levels}"></th>' * bool(levels) + what + f"</tr><tr>{above}"
        body, before = [], ()
        for names, values in zip(_row_names(rows), rows.itertuples(index=False, name=None), strict=True):
            shown = ["" if names[: i + 1] == before[: i + 1] and levels > 1 else names[i] for i in range(levels)]
            cells = [f'<th style="text-align:left">{_escaped(_text(name))}</th>' for name in shown]
            cells += [self._cell(column, value) for column, value in zip(rows.columns, values, strict=True)]
            body.append(f"<tr>{''.join(cells)}</tr>")
            before = names
        rest = len(self.data) - len(rows)
        more = f"<p>and {rest:,} more rows</p>" if rest else "" if len(rows) else f"<p>{NOTHING}</p>"
        return (
            f'<div class="{AS_IT_IS}"><table class="{AS_IT_IS}"><thead><tr>{above}</tr></thead>'
            f"<tbody>{''.join(body)}</tbody></table>{more}</div>"
        )

    def _cell(self, column: object, value: object) -> str:
        text, style = _text(value, self.formats.get(column)), "text-align:right"
        if isinstance(value, str) or not isinstance(value, numbers.Number):
            style = "text-align:left;white-space:pre-wrap;max-width:45em;overflow-wrap:anywhere"
        elif self.shaded and not pd.isna(value):
            red, green, blue, _ = matplotlib.colormaps["RdYlGn"](float(value), bytes=True)  # type: ignore[arg-type]
            style += f";background-color:rgb({red},{green},{blue});color:{'#000' if green > 90 else '#fff'}"
        return f'<td style="{style}">{_escaped(text)}</td>'

    def __repr__(self) -> str:
        rows = self.data.head(ROWS)
        if not len(self.data.columns):
            return NOTHING
        header = [_text(name) for name in ([*self.data.index.names] if self.index else []) + [*self.data.columns]]
        lines = []
        for names, values in zip(_row_names(rows), rows.itertuples(index=False, name=None), strict=True):
            cells = [_text(value, self.formats.get(name)) for name, value in zip(rows.columns, values, strict=True)]
            lines.append(
                [" ".join(visible(cell).split()) for cell in [_text(name) for name in names] * self.index + cells]
            )
        return text_table([visible(name, keep="") for name in header], lines) or NOTHING


class Quote:
    """A text of others, as it is: set off in a notebook, never read as Markdown, HTML or mathematics."""

    def __init__(self, text: str):
        self.text = visible(text)

    def _repr_html_(self) -> str:
        paragraphs = "".join(f"<p>{_escaped(part)}</p>" for part in self.text.split("\n\n"))
        return f'<blockquote class="{AS_IT_IS}">{paragraphs}</blockquote>'

    def __repr__(self) -> str:
        return self.text


class Source(Code):
    """Source code in colours; a long line is scrolled to, not broken in the middle of a word."""

    def _repr_html_(self) -> str:
        from pygments import highlight
        from pygments.formatters import HtmlFormatter

        whole = "white-space:pre;word-break:normal;overflow-x:auto;font-family:monospace"
        formatter = HtmlFormatter(style="friendly", noclasses=True, nobackground=True, prestyles=whole)
        return f'<div class="{AS_IT_IS}">{highlight(self.data, self._get_lexer(), formatter)}</div>'


def escaped_table(
    data: pd.DataFrame, formats: Mapping[Any, How] | None = None, index: bool = True, shaded: bool = False
) -> Table:
    """The one way in which a table reaches a notebook; arguments as of `Table`."""
    return Table(data, formats or {}, index, shaded)


def quote(text: str) -> Quote:
    """The one way in which a text that others wrote reaches a notebook other than in a table, a figure or a print."""
    return Quote(text)


def source_of(function: Callable) -> Source:
    """The source of a function or class, coloured, as the last line of a cell shows it."""
    return Source(inspect.getsource(function), language="python")


def _row_names(rows: pd.DataFrame) -> list[tuple]:
    return [name if isinstance(name, tuple) else (name,) for name in rows.index]


def _escaped(text: str) -> str:
    return escape(visible(text))


def _text(value: object, how: How | None = None) -> str:
    """A value as a reader has it: nothing for what is missing, numbers with few places, mappings as `a 1, b 2`.

    >>> _text(None), _text(0.18213), _text(1000.0), _text({"a": 1, "b": [2, 3]}), _text(True), _text(0.5, "{:.0%}")
    ('', '0.182', '1,000', 'a 1, b 2, 3', 'yes', '50%')
    """
    if isinstance(value, Mapping) and {"value", "n"} <= value.keys():
        return f"{_text(value['value'], '{:.1%}')} of {_text(value['n'])}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_text(name)} {_text(one)}" for name, one in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_text(one) for one in value)
    if value is None or pd.isna(value):
        return ""
    if how is not None:
        return how.format(value) if isinstance(how, str) else how(value)
    if isinstance(value, bool) or type(value).__name__ == "bool":  # numpy has one of its own
        return "yes" if value else "no"
    if isinstance(value, numbers.Real):
        number = float(value)
        return f"{number:,.0f}" if number.is_integer() else f"{number:,.3g}" if abs(number) < 1000 else f"{number:,.1f}"
    return str(value)
