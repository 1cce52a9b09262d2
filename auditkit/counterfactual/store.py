"""The counterfactual pictures of a run: made once, kept with where they came from, handed out by their keys.

(paper, Sec. 3.2: from a caption the generator makes a new image, by an edit command the editor changes the given one.)

A picture is filed under what made it: the pipeline, the text, the seed, and for an edit the picture that was changed.
So the same request is never made twice, and records hold a key, never an image. Every picture is looked at once,
without a model: is anything to be seen, was only a part of it changed (incoherence)? One that fails is kept
and counted with its reason in `why`, and nobody is asked about it.

`with_counterfactuals` gives a source of images those of an image store, so that whatever works on the one works on the
other.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from auditkit.counterfactual.clip_direction import PictureCheck, direction_gains, load_picture_check
from auditkit.counterfactual.make import edit_images, load_pipeline, regenerate_images
from auditkit.counterfactual.quality import incoherence, measure_change
from auditkit.data.source import Picture, Source
from auditkit.errors import AuditError
from auditkit.params import WAYS, Params
from auditkit.runs import jsonl
from auditkit.runs.files import replacing
from auditkit.runs.probe import Wish, parse_wish

IMAGES_FILE, MADE = "pictures.jsonl", "made-"  # where rows are filed, and how the keys of made pictures begin


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """One counterfactual picture, or why there is none."""

    key: str  # made-0f3c9a2b11d4
    way: str  # regenerate | edit
    base: str  # key of the picture it departs from
    text: str  # caption or edit command
    seed: int
    painter: str
    why: str = ""  # "" for a picture to be used, else the reason why not
    cut: str = ""  # the end of the text that the pipeline could not read
    box: tuple[int, int, int, int] | None = None  # of the change, in pixels
    share: float | None = None  # of the picture that the box covers
    rest: float | None = None  # structural similarity outside of the box
    seconds: float = 0.0


class ImageStore:
    """Makes counterfactual pictures and remembers them.

    Args:
        loaders: way -> what loads its pipeline (`pipeline_loaders`); each is loaded when it is first needed.
        p: uses generator, editor, seed, edit_region, edit_rest and what `load_picture_check` does.
        folder: where pictures are kept, beside the pictures.jsonl to which whoever calls appends `unfiled`; None: in
            memory alone, until told to `forget`.
    """

    def __init__(self, loaders: Mapping[str, Callable], p: Params, folder: Path | None = None):
        self.loaders, self.p, self.folder, self._loaded = dict(loaders), p, folder, {}
        self._check: PictureCheck | None = None
        self.made: dict[str, Counterfactual] = {}
        self._images: dict[str, Image.Image] = {}
        for row in jsonl.read(folder / IMAGES_FILE) if folder else ():
            self._remember(_made(row))
        self.new: list[Counterfactual] = []  # not in pictures.jsonl yet

    def make(
        self, way: str, pictures: Sequence[Picture], texts: Sequence[str], seed: int | None = None
    ) -> list[Counterfactual]:
        """The pictures of n captions or edit commands, in their order; what is known is not made again.

        Args:
            way: "regenerate" or "edit".
            pictures: the pictures they depart from, n.
            seed: of the pipeline's noise, the same for all; the run's if None.

        Raises AuditError when the pipeline cannot be loaded, or fails on every single request.
        """
        seed = self.p.seed if seed is None else seed
        keys = [self._key(way, picture.key, text, seed) for picture, text in zip(pictures, texts, strict=True)]
        todo: dict[str, int] = {}
        for i, key in enumerate(keys):
            if key not in self.made:
                todo.setdefault(key, i)
        if todo:
            pipeline, said = self._pipeline(way), [texts[i] for i in todo.values()]
            before = [pictures[i].image for i in todo.values()]
            if way == "edit":
                results = edit_images(pipeline, before, said, [seed] * len(said))
            else:
                results = regenerate_images(pipeline, said, [seed] * len(said))
            for (key, i), old, result in zip(todo.items(), before, results, strict=True):
                how: dict = {"why": result.why, "cut": result.cut, "seconds": round(result.seconds, 4)}
                made = Counterfactual(key, way, pictures[i].key, texts[i], seed, pipeline.name, **how)
                made = self._looked_at(made, old, result.image)
                self._remember(made, result.image)
                self.new.append(made)
        return [self.made[key] for key in keys]

    def forget(self) -> None:
        """Let go of all that is only in memory: training needs a picture for one step, and the next step's batches are
        then the same after a kill.
        """
        if self.folder is None:
            self.made.clear()
            self._images.clear()
            self.new.clear()

    def unfiled(self) -> list[dict]:
        """The rows of what was made since the last call, for pictures.jsonl."""
        rows = [asdict(made) for made in self.new]
        self.new.clear()
        return rows

    def picture(self, key: str) -> Picture:
        """A picture that was made. Raises AuditError where there is none of this key."""
        if key in self._images:
            return Picture(key, self._images[key])
        if self.folder is None or key not in self.made:
            raise AuditError(f"pictures: there is no picture {key!r} in {self.folder or 'memory'}.")
        return load_counterfactual(self.folder, key)

    def gains(
        self, pictures: Sequence[Picture], made: Sequence[Counterfactual], wishes: Sequence[Wish]
    ) -> list[float | None]:
        """How far each of n pictures moved from the one it departs from towards its wish (direction_gains); None for
        all that are not to be used anyway, and without a picture_check.
        """
        found: list[float | None] = [None] * len(made)
        rows = [i for i, one in enumerate(made) if not one.why] if self.p.picture_check else []
        if rows:
            self._check = self._check or load_picture_check(self.p)
            before, after = [pictures[i].image for i in rows], [self.picture(made[i].key).image for i in rows]
            for i, gain in zip(
                rows, direction_gains(self._check, before, after, [wishes[i] for i in rows]), strict=True
            ):
                found[i] = gain
        return found

    def _key(self, way: str, base: str, text: str, seed: int) -> str:
        if way not in self.loaders:
            raise AuditError(f'{WAYS[way]}: name a pipeline to {way} pictures with, or take "{way}" out of ways.')
        how = getattr(self.p, WAYS[way])
        parts = (how, base if way == "edit" else "", text, str(seed))
        return MADE + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]

    def _pipeline(self, way: str):
        how = getattr(self.p, WAYS[way])
        if how not in self._loaded:  # one pipeline may do both
            self._loaded[how] = self.loaders[way]()
        return self._loaded[how]

    def _looked_at(self, made: Counterfactual, before: Image.Image, image: Image.Image | None) -> Counterfactual:
        """With what changed, and a reason in `why` where it is not a targeted change."""
        if image is None or made.way != "edit":
            return made
        change = measure_change(before, image)
        why = incoherence(change, most=self.p.edit_region, rest=self.p.edit_rest)
        rest = None if change.rest is None else round(change.rest, 4)
        seen = {"box": change.box, "share": round(change.share, 4), "rest": rest}
        return Counterfactual(**{**asdict(made), **seen, "why": made.why or why})

    def _remember(self, made: Counterfactual, image: Image.Image | None = None) -> None:
        self.made[made.key] = made
        if image is None:
            return
        if self.folder is None:
            self._images[made.key] = image
            return
        path = _file(self.folder, made.key)
        with replacing(path) as beside:
            image.save(beside, "PNG")


def make_wished(
    store: ImageStore, pictures: Sequence[Picture], ways: Sequence[str], texts: Sequence[str]
) -> dict[int, tuple[Wish, Counterfactual, float | None]]:
    """The wishes among n texts, made, with the gain of each picture, by their place: a batch a way.

    A way of "" is passed over.
    """
    wishes = {i: wish for i, text in enumerate(texts) if ways[i] not in ("", "question") and (wish := parse_wish(text))}
    found = {}
    for way in sorted({ways[i] for i in wishes}):
        of = [i for i in wishes if ways[i] == way]
        made = store.make(way, [pictures[i] for i in of], [wishes[i].text for i in of])
        gains = store.gains([pictures[i] for i in of], made, [wishes[i] for i in of])
        found |= {i: (wishes[i], one, gain) for i, one, gain in zip(of, made, gains, strict=True)}
    return found


def pipeline_loaders(p: Params) -> dict[str, Callable]:
    """What loads the pipelines of a parameter file: way -> loader."""
    return {
        way: partial(load_pipeline, getattr(p, name), p.device, p.dtype)
        for way, name in WAYS.items()
        if name and getattr(p, name)
    }


def load_counterfactual(folder: Path, key: str) -> Picture:
    """A picture of a folder's image store, read each time it is looked at."""
    return Picture(key, partial(_read, _file(Path(folder), key)))


class WithCounterfactuals:
    """A source with those of image stores among its own (`with_counterfactuals`)."""

    def __init__(self, source: Source, folders: Sequence[Path]):
        self._source, self._seen = source, {}
        self._at: dict[str, Path] = {}
        self.made: dict[str, Counterfactual] = {}
        for folder in folders:
            for row in jsonl.each(folder / IMAGES_FILE):
                self._at[row["key"]], self.made[row["key"]] = folder, _made(row)

    def __getattr__(self, name: str):
        return getattr(self._source, name)

    def picture(self, key: str) -> Picture:
        return load_counterfactual(self._at[key], key) if key in self._at else self._source.picture(key)

    def truth(self, key: str, question: str) -> str | None:
        known = self._known(key)
        return None if known is None else self._source.truth(known, question)

    def accepted(self, key: str, question: str) -> tuple[str, ...]:
        known = self._known(key)
        return () if known is None else self._source.accepted(known, question)

    def gap(self, key: str, question: str, gaps: list) -> str | None:
        known = self._known(key)
        return None if known is None else self._source.gap(known, question, gaps)

    def _known(self, key: str) -> str | None:
        """The key under which the source knows what a picture shows: its own, or what it reads off a made one."""
        if key not in self._at:
            return key
        if key not in self._seen:
            self._seen[key] = self._source.read(self.picture(key).image)
        return self._seen[key]


def with_counterfactuals(source: Source, *folders: Path) -> Source:
    """A source that also hands out the counterfactual pictures of these stage folders, and grades them as it can.

    Its oracle looks at what a picture shows, not at what was asked of the editor: where the source can `read` one.
    """
    return WithCounterfactuals(source, [Path(folder) for folder in folders if (Path(folder) / IMAGES_FILE).is_file()])


def _made(row: Mapping) -> Counterfactual:
    return Counterfactual(**{**row, "box": tuple(row["box"]) if row["box"] else None})


def _file(folder: Path, key: str) -> Path:
    return folder / "pictures" / f"{key}.png"


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise AuditError(f"pictures: {path} cannot be read ({error}); start its stage over.") from error


def seed_of(*parts: object) -> int:
    """A seed that depends on all the parts, the same on every machine."""
    return int(hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:8], 16)
