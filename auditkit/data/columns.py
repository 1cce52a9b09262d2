"""Which of a data set's columns hold the pictures, the questions and the answers, and what their cells say.

Columns that nobody named are found by their names: flat ones (`image`, `question`, `answer` and its relatives), or
`images` with `texts` [{"user", "assistant"}] as in The Cauldron and FineVision. A `complain` given to a function below
turns a sentence into the error to raise, for only the caller knows how the data set was named.
"""

import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from auditkit.errors import AuditError

IMAGE = ("image", "images", "img", "picture")
QUESTION = ("question", "query")
ANSWER = ("multiple_choice_answer", "answer", "answers", "label", "labels")
ID = ("image_id", "imageId", "id")
Complain = Callable[[str], Exception]
PLACEHOLDER = re.compile(
    r"^(?:\s*(?:<image>|<\|image_?(?:pad)?\|>|<img>|\[IMG\]|<start_of_image>|<image_soft_token>))+\s*", re.I
)
ANY_PLACEHOLDER = re.compile(
    r"<image>|<\|image_?(?:pad)?\|>|<start_of_image>|<image_soft_token>|<\|vision_start\|>", re.I
)


def find_column(data: Any, named: str | None, usual: Sequence[str], complain: Complain) -> str | None:
    """The column of this name, else the first of the usual ones that is there, else None."""
    if named and named not in data.column_names:
        raise complain(f"there is no column {named}; there are {', '.join(data.column_names)}.")
    return named or next((name for name in usual if name in data.column_names), None)


def find_id_column(data: Any, complain: Complain) -> str:
    """The column by which pictures and questions that lie apart meet."""
    column = find_column(data, None, ID, complain)
    if column is None:
        raise complain(
            f"pictures and questions meet by a column {' or '.join(ID)}; there are {', '.join(data.column_names)}."
        )
    return column


def find_image_column(data: Any, named: str | None, complain: Complain) -> str:
    """The column that holds encoded pictures."""
    find_column(data, named, (), complain)
    columns = [name for name, feature in data.features.items() if _holds_images(feature)]
    if not columns or (named and named not in columns):
        which = f"its column {named} holds no images" if named else "it holds no images"
        kinds = {name: getattr(feature, "dtype", None) for name, feature in data.features.items()}
        there = ", ".join(f"{name} ({kind})" if isinstance(kind, str) else name for name, kind in kinds.items())
        raise complain(f"{which}; its columns are {there}.")
    return named or next((name for name in IMAGE if name in columns), columns[0])


def _holds_images(feature) -> bool:
    """Whether a column is declared as images, or as bytes, a structure with bytes, or lists of these."""
    from datasets import Image, Value

    inner = getattr(feature, "feature", None)
    if inner is not None:
        return _holds_images(inner)
    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, Image) or (isinstance(feature, Value) and feature.dtype in ("binary", "large_binary"))


def picture_keys(pictures: Any, column: str) -> list[str | None]:
    """A key for each row, from its picture's bytes; None where there is no picture or more than one.

    Args:
        pictures: the data set with this column alone, in Arrow's format, so that nothing is decoded.

    They are computed once and then come from the cache of `datasets`.
    """
    found = pictures.map(
        _digests, batched=True, batch_size=256, fn_kwargs={"column": column}, remove_columns=[column], desc="pictures"
    )
    return list(found.with_format(None)["key"])


def _digests(batch, column: str) -> dict:
    digests = []
    for cell in batch[column].to_pylist():
        file = stored_picture(cell)
        data = file.read_bytes() if isinstance(file, Path) else file.getvalue()
        digests.append(hashlib.sha256(data).hexdigest()[:16] if data else None)
    return {"key": digests}


def stored_picture(cell: Any) -> io.BytesIO | Path:
    """The one picture of a cell as a file: its bytes, or the path beside the data set; empty for none or several."""
    if isinstance(cell, list):
        cell = cell[0] if len(cell) == 1 else None
    if isinstance(cell, dict):
        path, cell = cell.get("path"), cell.get("bytes")
        if cell is None and path and Path(path).is_file():
            return Path(path)
    return io.BytesIO(cell or b"")


def labelled_rows(
    data: Any, options: Mapping[str, str], complain: Complain, extra: str | None = None
) -> Iterator[tuple[int, str, tuple[str, ...], str | None, object]]:
    """(row, question, accepted answers, skill, cell of the column `extra`) of every question with an answer.

    Args:
        options: names of columns under "question", "answer" and "skill"; a question of "" means to use none.
    """
    chat = "texts" if "texts" in data.column_names and "question" not in options else None
    question = None if chat else find_column(data, options.get("question"), QUESTION, complain)
    skill = find_column(data, options.get("skill"), (), complain)
    if options.get("question") == "" or not (chat or question):
        return  # pictures alone
    answer = None if chat else find_column(data, options.get("answer"), ANSWER, complain)
    if not chat and answer is None:
        raise complain(
            f"its questions are in {question}, but where are the answers? Name their column with &answer=, or write "
            f"&question= to use the pictures alone; its columns are {', '.join(data.column_names)}."
        )
    wanted = list(dict.fromkeys(filter(None, (chat, question, answer, skill, extra))))
    classes = {name: data.features[name].names for name in wanted if hasattr(data.features[name], "names")}
    row = -1
    for batch in data.select_columns(wanted).with_format(None).iter(batch_size=1000):
        for cells in zip(*(batch[name] for name in wanted), strict=True):
            row += 1
            cell: dict = dict(zip(wanted, cells, strict=True))
            for name, words in classes.items():  # stored as numbers
                cell[name] = words[cell[name]] if isinstance(cell[name], int) and cell[name] >= 0 else None
            turns = cell[chat] if chat else [{"user": cell[question], "assistant": cell[answer]}]
            for turn in turns or []:
                asked = without_placeholder(turn["user"] or "", f"row {row}")
                said = accepted(turn["assistant"])
                if asked and said:
                    yield row, asked, said, _text(cell[skill]) if skill else None, cell.get(extra)


def accepted(answer: object) -> tuple[str, ...]:
    """The answers that are right, the commonest first, out of a text, a number, yes or no, or several people's answers.

    Of ten people's or more, what three of them said is right, as in the VQA benchmark (Antol et al. 2015); fewer
    answers are ways to say the same, as in DocVQA.

    >>> accepted([{"answer": "net", "answer_id": 1}, {"answer": "mesh"}, {"answer": "Net"}])
    ('net', 'mesh')
    >>> accepted(["net"] * 6 + ["mesh"] * 3 + ["fence"])
    ('net', 'mesh')
    >>> accepted(True), accepted(3), accepted(["", None]), accepted([])
    (('yes',), ('3',), (), ())
    """
    several = answer if isinstance(answer, list | tuple) else [answer]
    texts = [_text(one.get("answer") if isinstance(one, dict) else one) for one in several]
    written: dict[str, str] = {}  # each answer as it was first written
    for text in texts:
        if text:
            written.setdefault(text.lower(), text)
    often = Counter(text.lower() for text in texts if text).most_common()
    enough = 3 if sum(count for _, count in often) >= 10 else 1
    return tuple(written[text] for n, (text, count) in enumerate(often) if count >= enough or n == 0)


def _text(value: object) -> str | None:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (str(value).strip() or None) if value is not None else None


def without_placeholder(question: str, where: str) -> str:
    """A question without the image placeholders before it. Raises AuditError where one stands within it.

    >>> without_placeholder("<image>\\nwhat is it?", "a.json, entry 1")
    'what is it?'
    """
    plain = PLACEHOLDER.sub("", question)
    plain = re.sub(r"\s*<image>\s*$", "", plain, flags=re.IGNORECASE)
    if inside := ANY_PLACEHOLDER.search(plain):
        raise AuditError(
            f"{where}: the question holds the image placeholder {inside[0]}; take it out, for "
            "the picture stands before its question."
        )
    return plain.strip()
