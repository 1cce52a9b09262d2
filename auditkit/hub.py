"""Pictures and questions from a Hugging Face data set: `images: hub:ID?option=value&...` in a parameter file.

    hub:HuggingFaceM4/the_cauldron?config=vqav2&limit=20000      VQAv2's training images, several questions to each
    hub:lmms-lab/VQAv2?train=validation&test=&skill=answer_type  VQAv2's validation split, a fifth kept for testing
    hub:lmms-lab/GQA?config=train_balanced_images&questions=train_balanced_instructions
    hub:my_folder?train=train&test=test                          a folder of parquet files, such as `hf download` makes

`datasets` downloads it once, keeps it as memory-mapped Arrow, and hands out any row of it in no time. Only the files of
the splits in use are fetched, and with a `limit` only as many of them as hold that many rows.

A picture's key is a hash of its bytes. So a picture that comes once for each of its questions is one picture, it keeps
its key and its split when rows are added, and one that is in both the train and the test split counts as test only.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qsl

from auditkit.errors import AuditError
from auditkit.images import Collection, Row

OPTIONS = {
    "config": "one of the data set's configurations",
    "revision": "a branch, tag or commit",
    "train": "the split to learn from and to audit; else train, else the only one",
    "test": "the split with the benchmarks; else validation or test; empty: a fifth of the pictures",
    "limit": "the first so many rows of each split; else all",
    "image": "the column of pictures",
    "question": "the column of questions; empty: use the pictures alone",
    "answer": "the column of answers",
    "skill": "the column that parts the benchmarks",
    "questions": "the configuration with the questions, where pictures and questions lie apart",
}
IMAGE = ("image", "images", "img", "picture")
QUESTION = ("question", "query")
ANSWER = ("multiple_choice_answer", "answer", "answers", "label", "labels")
ID = ("image_id", "imageId", "id")
TEST = ("validation", "val", "test")  # in this order: a test split is often published without its answers


@dataclass(frozen=True)
class Place:
    """Where a data set is, and how to speak of it."""

    spec: str  # as in the parameter file
    path: str  # a hub id, or a folder
    options: dict[str, str]

    def error(self, what: str) -> AuditError:
        return AuditError(f'images: "{self.spec}": {what}')


class Hub(Collection):
    """A Hugging Face data set, or a folder of its parquet files, as a source of images.

    Columns not named are found by their names: `image`, `question` and `answer` (`answers`, `multiple_choice_answer`,
    `label`), or `images` with `texts` [{"user", "assistant"}] as in The Cauldron and FineVision. Of several human
    answers the commonest counts. Rows with no picture or with more than one are left out.

    Raises AuditError where the data set, its configuration, a split or a column is not there, and for one that needs
    code of its own to load.
    """

    def __init__(self, spec: str):
        place = parse(spec)
        sets, self._cells, declared = _splits(place), {}, {}
        rows: list[Row] = []
        count: Counter[str] = Counter()
        for split, data in sets.items():
            column = _image_column(place, data)
            pictures = data.select_columns([column]).with_format("arrow")
            keys = _keys(pictures, column)
            for row, key in enumerate(keys):
                if key is not None:
                    declared[key] = split if len(sets) > 1 else None  # "test" comes last and has the last word
                    self._cells.setdefault(key, (pictures, row, column))
            for key, question, answer, skill in _questions(place, split, data, keys):
                rows.append(Row(f"{key}/q{count[key]}", key, question, answer, skill or Path(place.path).name))
                count[key] += 1
        if not declared:
            raise place.error("not one of its rows holds just one picture.")
        super().__init__(Path(place.path).name, declared, rows)

    def _file(self, key: str) -> BinaryIO | Path:
        pictures, row, column = self._cells[key]
        return _stored(_only(pictures[row][column][0].as_py()))


def parse(spec: str) -> Place:
    """Take the text of a parameter file apart.

    Raises AuditError for a missing id, an unknown option, and a limit that is no number.

    >>> parse("hub:lmms-lab/VQAv2?train=validation&limit=1000")
    Place(spec='hub:lmms-lab/VQAv2?train=validation&limit=1000', path='lmms-lab/VQAv2', \
options={'train': 'validation', 'limit': '1000'})
    """
    path, _, query = spec.removeprefix("hub:").partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    place = Place(spec, path, options)
    if not path:
        raise place.error("write a data set's id, as in hub:HuggingFaceM4/the_cauldron?config=vqav2.")
    for name in options:
        if name not in OPTIONS:
            raise place.error(f"there is no option {name}; there are {', '.join(OPTIONS)}.")
    if "limit" in options and not (options["limit"].isdigit() and int(options["limit"])):
        raise place.error(f"limit is a number of rows, not {options['limit']!r}.")
    return place


def _splits(place: Place) -> dict:
    """{"train": data set} or {"train": ..., "test": ...}, as the options say."""
    files = _files(place, place.options.get("config"))
    train = place.options.get("train") or ("train" if "train" in files else next(iter(files)))
    test = place.options.get("test", next((name for name in TEST if name in files and name != train), ""))
    for name in filter(None, (train, test)):
        if name not in files:
            raise place.error(f'there is no split "{name}"; there are {", ".join(files)}.')
    if train == test:
        raise place.error(
            f'"{train}" cannot be both train and test; leave test empty to keep a fifth of it for testing.'
        )
    return {role: _rows(place, name, files[name]) for role, name in (("train", train), ("test", test)) if name}


def _files(place: Place, config: str | None) -> dict[str, list[str]]:
    """The files of each split of a configuration; nothing but the data set's card is downloaded for it."""
    from datasets import load_dataset_builder
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HfHubHTTPError

    folder = _folder(place.path)
    local = Path(place.path).is_absolute() or place.path.startswith((".", "~")) or place.path.count("/") > 1
    if local and folder is None:
        raise place.error("there is no such folder.")
    try:
        builder = load_dataset_builder(str(folder or place.path), config, revision=place.options.get("revision"))
    except DatasetNotFoundError as error:
        if "gated" in str(error):
            raise place.error(
                f"it is gated: accept its terms at https://huggingface.co/datasets/{place.path}, then log in with "
                "`hf auth login`."
            ) from error
        if "Revision" in str(error):
            raise place.error(f"there is no revision {place.options.get('revision')}.") from error
        raise place.error(
            "there is no such data set on the hub, or it is private; check the id, or log in with `hf auth login`."
        ) from error
    except (ConnectionError, HfHubHTTPError) as error:
        raise place.error(
            "the hub cannot be reached; with no network, `hf download --repo-type dataset` it elsewhere and name the "
            "folder, as in hub:my_folder."
        ) from error
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise place.error(
            "it needs a Python script of its own to load, and no code of a data set is run here; look for a copy of it "
            "in parquet files."
        ) from error
    except FileNotFoundError as error:
        raise place.error("it holds no data files, such as parquet.") from error
    except ValueError as error:
        raise place.error(_config_error(str(error))) from error
    return {str(name): list(files) for name, files in (builder.config.data_files or {}).items()}


def _config_error(said: str) -> str:
    """What `datasets` says of configurations, in a sentence that names those there are."""
    there = said.partition("Available: ")[2] or said.partition("available configs: ")[2]
    names = ", ".join(name.strip("' ") for name in there.partition("]")[0].strip("[").split(",")) if there else ""
    if "not found" in said:
        return f"there is no such configuration; there are {names}."
    if "onfig name is missing" in said:
        return f"choose one of its configurations with ?config=NAME: {names}."
    return f"it cannot be opened ({said.splitlines()[0].rstrip('.')})."


def _rows(place: Place, split: str, files: list[str]):
    """The rows of a split, memory-mapped; with a limit, from the first files that hold enough."""
    from datasets import concatenate_datasets, load_dataset
    from datasets.exceptions import DatasetsError

    folder, limit = _folder(place.path), int(place.options.get("limit", 0))
    parts: list = []
    for some in [[name] for name in files] if limit else [files]:
        try:  # file names of our own choice: by a split's name alone, `datasets` would download all splits
            part = load_dataset(
                str(folder or place.path), data_files={split: some}, split=split, revision=place.options.get("revision")
            )
        except (DatasetsError, OSError, ValueError) as error:
            why = str(error.__cause__ or error).splitlines()[0].rstrip(".")
            raise place.error(f'its split "{split}" cannot be loaded ({why}).') from error
        parts.append(part)
        if limit and sum(map(len, parts)) >= limit:
            break
    data = concatenate_datasets(parts) if len(parts) > 1 else parts[0]
    return data.select(range(min(limit, len(data)))) if limit else data


def _folder(path: str) -> Path | None:
    from auditkit.params import root

    candidates = (Path(path).expanduser(), root() / path)
    return next((folder.resolve() for folder in candidates if folder.is_dir()), None)


def _image_column(place: Place, data) -> str:
    columns = [name for name, feature in data.features.items() if _holds_images(feature)]
    named = place.options.get("image")
    if named and named not in data.column_names:
        raise place.error(f"there is no column {named}; there are {', '.join(data.column_names)}.")
    if not columns or (named and named not in columns):
        which = f"its column {named} holds no images" if named else "it holds no images"
        raise place.error(f"{which}; its columns are {_described(data)}.")
    return named or next((name for name in IMAGE if name in columns), columns[0])


def _holds_images(feature) -> bool:
    """Whether a column can hold encoded images: declared as such, bytes, a structure with bytes, or lists of these."""
    from datasets import Image, Value

    inner = getattr(feature, "feature", None)
    if inner is not None:
        return _holds_images(inner)
    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, Image) or (isinstance(feature, Value) and feature.dtype in ("binary", "large_binary"))


def _described(data) -> str:
    kinds = {name: getattr(feature, "dtype", None) for name, feature in data.features.items()}
    return ", ".join(f"{name} ({kind})" if isinstance(kind, str) else name for name, kind in kinds.items())


def _keys(pictures, column: str) -> list[str | None]:
    """A key for each row, from its picture's bytes; None where there is no picture or more than one. Made once."""
    found = pictures.map(
        _digests, batched=True, batch_size=256, fn_kwargs={"column": column}, remove_columns=[column], desc="pictures"
    )
    return list(found.with_format(None)["key"])


def _digests(batch, column: str) -> dict:
    keys = []
    for value in batch[column].to_pylist():
        stored = _stored(_only(value))
        data = stored.read_bytes() if isinstance(stored, Path) else stored.getvalue()
        keys.append(hashlib.sha256(data).hexdigest()[:16] if data else None)
    return {"key": keys}


def _only(value):
    """The one picture of a cell; None where it holds none or several."""
    if isinstance(value, list):
        return value[0] if len(value) == 1 else None
    return value


def _stored(value) -> BinaryIO | Path:
    """A picture's file as a data set stores it: its bytes, or the path of a file beside it."""
    if isinstance(value, dict):
        path, value = value.get("path"), value.get("bytes")
        if value is None and path and Path(path).is_file():
            return Path(path)
    return io.BytesIO(value or b"")


def _questions(place: Place, split: str, data, keys: list[str | None]) -> Iterator[tuple[str, str, str, str | None]]:
    """(picture's key, question, answer, skill) of every labelled question about a picture that has a key."""
    if place.options.get("question") == "":
        return
    where: dict = {}
    if config := place.options.get("questions"):
        ours = _id(place, data)
        where = dict(zip(data.select_columns([ours]).with_format(None)[ours], keys, strict=True))
        files = _files(place, config)
        if split == "test":
            raise place.error("with questions=, leave test empty: a fifth of the pictures is kept for testing.")
        name = place.options.get("train") or ("train" if "train" in files else next(iter(files)))
        data = _rows(Place(place.spec, place.path, {**place.options, "limit": "0"}), name, files[name])
    yield from _labelled(place, data, where, keys)


def _labelled(place: Place, data, where: dict, keys: list) -> Iterator[tuple[str, str, str, str | None]]:
    skill = place.options.get("skill")
    if skill and skill not in data.column_names:
        raise place.error(f"there is no column {skill}; there are {', '.join(data.column_names)}.")
    chat = "texts" if "texts" in data.column_names and "question" not in place.options else None
    question = None if chat else _column(place, data, "question", QUESTION)
    if not chat and question is None:
        return  # pictures alone
    answer = None if chat else _column(place, data, "answer", ANSWER)
    if not chat and answer is None:
        raise place.error(
            f"its questions are in {question}, but where are the answers? Name their column with &answer=, or write "
            f"&question= to use the pictures alone; its columns are {', '.join(data.column_names)}."
        )
    ours = _id(place, data) if where else None
    names = {column: data.features[column].names for column in (answer, skill)
             if column and hasattr(data.features[column], "names")}  # fmt: skip
    wanted = list(dict.fromkeys(filter(None, (chat, question, answer, skill, ours))))
    number = 0
    for batch in data.select_columns(wanted).with_format(None).iter(batch_size=1000):
        for i in range(len(batch[wanted[0]])):
            cells = {column: batch[column][i] for column in wanted}
            for column, words in names.items():  # classes are stored as numbers
                cells[column] = words[cells[column]] if isinstance(cells[column], int) else cells[column]
            key = where.get(cells[ours]) if ours else keys[number]
            number += 1
            if key is None:
                continue
            turns = cells[chat] if chat else [{"user": cells[question], "assistant": cells[answer]}]
            for turn in turns or []:
                asked = (turn["user"] or "").replace("<image>", "").strip()
                said = commonest(turn["assistant"])
                if asked and said:
                    yield key, asked, said, _text(cells[skill]) if skill else None


def _column(place: Place, data, option: str, usual: tuple[str, ...]) -> str | None:
    named = place.options.get(option)
    if named and named not in data.column_names:
        raise place.error(f"there is no column {named}; there are {', '.join(data.column_names)}.")
    return named or next((name for name in usual if name in data.column_names), None)


def _id(place: Place, data) -> str:
    for name in ID:
        if name in data.column_names:
            return name
    raise place.error(
        f"pictures and questions meet by a column {' or '.join(ID)}; there are {', '.join(data.column_names)}."
    )


def commonest(answer) -> str | None:
    """One answer out of what a data set holds: a text, a number, yes or no, or the answers of several people.

    >>> commonest([{"answer": "net", "answer_id": 1}, {"answer": "mesh"}, {"answer": "Net"}])
    'net'
    >>> commonest(True), commonest(3), commonest(["", None]), commonest([])
    ('yes', '3', None, None)
    """
    if not isinstance(answer, list):
        return _text(answer)
    given = [_text(one.get("answer") if isinstance(one, dict) else one) for one in answer]
    given = [text for text in given if text]
    if not given:
        return None
    most = Counter(text.lower() for text in given).most_common(1)[0][0]
    return next(text for text in given if text.lower() == most)


def _text(value) -> str | None:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (str(value).strip() or None) if value is not None else None
