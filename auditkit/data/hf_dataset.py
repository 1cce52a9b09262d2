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

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qsl

from auditkit.data import columns
from auditkit.data.source import Collection, Row
from auditkit.errors import AuditError
from auditkit.params import is_folder, project_root
from auditkit.specs import HUB_SECONDS, is_hub_id
from auditkit.text import short_error, shortened

HUB_OPTIONS = {
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
TEST = ("validation", "val", "test")  # in this order: a test split is often published without its answers


@dataclass(frozen=True)
class Place:
    """Where a data set is, and how to speak of it."""

    spec: str  # as in the parameter file
    path: str  # a hub id, or a folder
    options: dict[str, str]

    def error(self, what: str) -> AuditError:
        return AuditError(f'images: "{self.spec}": {what}')


class HubDataset(Collection):
    """A Hugging Face data set, or a folder of its parquet files, as a source of images.

    Which columns it reads: data/columns.py. Of several people's answers the commonest is the answer, and others
    are accepted. Rows with no
    picture or more than one are left out.

    Raises AuditError where the data set, its configuration, a split or a column is not there, and for one that needs
    code of its own to load.
    """

    def __init__(self, spec: str):
        place = parse_hub(spec)
        options, name = place.options, Path(place.path).name
        sets, declared = _splits(place), {}
        self._cells: dict = {}
        rows: list[Row] = []
        count: Counter[str] = Counter()
        for split, data in sets.items():
            column = columns.find_image_column(data, options.get("image"), place.error)
            pictures = data.select_columns([column]).with_format("arrow")
            keys: Any = columns.picture_keys(pictures, column)
            for number, key in enumerate(keys):
                if key is not None:
                    declared[key] = split if len(sets) > 1 else None  # "test" comes last and has the last word
                    self._cells.setdefault(key, (pictures, number, column))
            extra = None
            if "questions" in options:  # in a configuration of their own
                ids = columns.find_id_column(data, place.error)
                keys = dict(zip(data.select_columns([ids])[ids], keys, strict=True))
                data = _asked(place)
                extra = columns.find_id_column(data, place.error)
            for number, question, answers, skill, cell in columns.labelled_rows(data, options, place.error, extra):
                key = keys.get(cell) if extra else keys[number]
                if key is not None:
                    rows.append(Row(f"{key}/q{count[key]}", key, question, answers, skill or name))
                    count[key] += 1
        if not declared:
            raise place.error("not one of its rows holds just one picture.")
        if "questions" in options and not rows:
            raise place.error(f"not one of its questions names a picture that is there (by {ids} and {extra}).")
        super().__init__(name, declared, rows)

    def _file(self, key: str) -> BinaryIO | Path:
        pictures, number, column = self._cells[key]
        return columns.stored_picture(pictures[number][column][0].as_py())


def parse_hub(spec: str) -> Place:
    """Take the text of a parameter file apart.

    Raises AuditError for a missing id, an unknown option, and a limit that is no number.

    >>> parse_hub("hub:lmms-lab/VQAv2?train=validation&limit=1000")
    Place(spec='hub:lmms-lab/VQAv2?train=validation&limit=1000', path='lmms-lab/VQAv2', \
options={'train': 'validation', 'limit': '1000'})
    """
    path, _, query = spec.removeprefix("hub:").partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    place = Place(spec, path, options)
    if not path:
        raise place.error("write a data set's id, as in hub:HuggingFaceM4/the_cauldron?config=vqav2.")
    for name in options:
        if name not in HUB_OPTIONS:
            raise place.error(f"there is no option {name}; there are {', '.join(HUB_OPTIONS)}.")
    if "limit" in options and not (re.fullmatch("[0-9]{1,12}", options["limit"]) and int(options["limit"])):
        raise place.error(f"limit is a number of rows, not {shortened(options['limit'])}.")
    if local_folder(path) is None and not is_hub_id(path):
        raise place.error(
            "there is no such folder." if _is_local(path) else
            "this is neither a folder nor a data set's id, as in hub:HuggingFaceM4/the_cauldron."
        )  # fmt: skip
    return place


def _splits(place: Place) -> dict:
    """{"train": data set} or {"train": ..., "test": ...}, as the options say."""
    files = _files(place, place.options.get("config"))
    train = _train(place, files)
    usual = next((name for name in TEST if name in files and name != train), "")
    apart = "questions" in place.options
    test = place.options.get("test", "" if apart else usual)
    if apart and test:
        raise place.error("with questions=, leave test empty: a fifth of the pictures is kept for testing.")
    if train == test:
        raise place.error(f'"{train}" cannot be both train and test; leave test empty to keep a fifth for testing.')
    if test and test not in files:
        raise place.error(f'there is no split "{test}"; there are {", ".join(files)}.')
    limit = int(place.options.get("limit", 0))
    return {role: _rows(place, name, files[name], limit) for role, name in (("train", train), ("test", test)) if name}


def _asked(place: Place):
    """The questions of a data set that keeps them apart from its pictures; all of them, whatever the limit."""
    files = _files(place, place.options["questions"])
    return _rows(place, (split := _train(place, files)), files[split], limit=0)


def _train(place: Place, files: dict[str, list[str]]) -> str:
    split = place.options.get("train") or ("train" if "train" in files else next(iter(files)))
    if split not in files:
        raise place.error(f'there is no split "{split}"; there are {", ".join(files)}.')
    return split


def _files(place: Place, config: str | None) -> dict[str, list[str]]:
    """The files of each split of a configuration; nothing but the data set's card is downloaded for it."""
    from datasets import load_dataset_builder
    from datasets.exceptions import DatasetNotFoundError

    folder = local_folder(place.path)
    if _is_local(place.path) and folder is None:
        raise place.error("there is no such folder.")
    if folder is None:
        _reach(place)
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
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise place.error(
            "it needs a Python script of its own to load, and no code of a data set is run here; look for a copy of it "
            "in parquet files."
        ) from error
    except FileNotFoundError as error:
        raise place.error("it holds no data files, such as parquet.") from error
    except OSError as error:
        why = str(error).splitlines()[0].rstrip(".")
        if folder is not None:
            raise place.error(f"it cannot be opened ({why}).") from error
        raise _unreachable(place, why) from error
    except ValueError as error:
        raise place.error(_config_error(str(error))) from error
    return {str(name): list(files) for name, files in (builder.config.data_files or {}).items()}


def _reach(place: Place) -> None:
    """Ask the hub once for the data set's card: `datasets` would try six times, for 23 seconds, before it gave up.

    Raises AuditError where no hub answers, or it is ill. What it says of the data set is left to `datasets`.
    """
    from datasets import config
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    if config.HF_HUB_OFFLINE:  # then `datasets` does not try at all
        return
    card = hf_hub_url(
        place.path,
        config.REPOCARD_FILENAME,
        repo_type="dataset",
        revision=place.options.get("revision"),
        endpoint=config.HF_ENDPOINT,
    )
    try:
        get_hf_file_metadata(card, timeout=HUB_SECONDS)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError):
        pass
    except (errors.HTTPError, OSError) as error:
        raise _unreachable(place, short_error(error)) from error


def _unreachable(place: Place, why: str) -> AuditError:
    return place.error(
        f"the hub cannot be reached ({why}); without a network, `hf download --repo-type dataset` it elsewhere and "
        "name the folder, as in hub:my_folder."
    )


def _config_error(said: str) -> str:
    """What `datasets` says of configurations, in a sentence that names those there are."""
    there = said.partition("Available: ")[2] or said.partition("available configs: ")[2]
    names = ", ".join(name.strip("' ") for name in there.partition("]")[0].strip("[").split(",")) if there else ""
    if "not found" in said:
        return f"there is no such configuration; there are {names}."
    if "onfig name is missing" in said:
        return f"choose one of its configurations with ?config=NAME: {names}."
    return f"it cannot be opened ({said.splitlines()[0].rstrip('.')})."


def _rows(place: Place, split: str, files: list[str], limit: int):
    """The rows of a split, memory-mapped; with a limit, from the first files that hold enough."""
    from datasets import concatenate_datasets, load_dataset
    from datasets.exceptions import DatasetsError

    folder = local_folder(place.path)
    parts: list = []
    print(f'images: opening the split "{split}" of {place.path} (downloaded and indexed the first time)', flush=True)
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


def _is_local(path: str) -> bool:
    return Path(path).is_absolute() or path.startswith((".", "~")) or path.count("/") > 1


def local_folder(path: str) -> Path | None:
    """The folder that a data set's path names, from here or from the project; None for a hub's id."""
    candidates = (Path(path).expanduser(), project_root() / path)
    return next((folder.resolve() for folder in candidates if is_folder(folder)), None)
