"""The counterfactual pictures of a run: made once, kept with where they came from, handed out by their keys.

(paper, Sec. 3.2: from a caption the generator makes a new image, by an edit command the editor changes the given one.)

A picture is filed under what made it: the pipeline, the text, the seed, and for an edit the picture that was changed.
So the same request is never painted twice, and records hold a key, never an image. Every picture is looked at once,
without a model: is anything to be seen, was only a part of it changed (counterfactual.coherent)? One that fails is kept
and counted with its reason in `why`, and nobody is asked about it.

`within` gives a source of images the pictures of an album, so that whatever works on the one works on the other.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from auditkit import counterfactual, lines, specs
from auditkit.errors import AuditError
from auditkit.images import Picture, Source

FILE = "pictures.jsonl"
IN_MEMORY = 1024  # pictures an album without a folder remembers
PAIRINGS = {  # which of question and image are the auditor's, and which the source's own
    "question": ("(Q*, I)",),
    "regenerate": ("(Q*, I*)", "(Q, I*)"),
    "edit": ("(Q*, I*)", "(Q, I*)"),
}


@dataclass(frozen=True)
class Made:
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


class Album:
    """Makes counterfactual pictures and remembers them.

    Args:
        painters: way -> what loads its pipeline (`painters`); each is loaded when it is first needed.
        p: uses seed, edit_region and edit_rest.
        folder: where pictures and pictures.jsonl are kept; None: the latest thousand in memory alone, as for training,
            where a picture serves for one step.
    """

    def __init__(self, painters: Mapping[str, Callable], p, folder: Path | None = None):
        self.painters, self.p, self.folder, self._loaded = dict(painters), p, folder, {}
        self._names = {way: specs.parse_painter(getattr(p, PIPELINES[way])).name for way in self.painters}
        self.made: OrderedDict[str, Made] = OrderedDict()
        self._images: dict[str, Image.Image] = {}
        for row in lines.read(folder / FILE) if folder else ():
            self._remember(_made(row))
        self.count = {"asked": 0, "made": 0, "seconds": 0.0}  # by this object

    def make(self, way: str, pictures: Sequence[Picture], texts: Sequence[str], seed: int | None = None) -> list[Made]:
        """The pictures of n captions or edit commands, in their order; what is known is not painted again.

        Args:
            way: "regenerate" or "edit".
            pictures: the pictures they depart from, n.
            seed: of the pipeline's noise, the same for all; the run's if None.

        Raises AuditError when the pipeline cannot be loaded, or fails on every single request.
        """
        seed = self.p.seed if seed is None else seed
        keys = [self._key(way, picture.key, text, seed) for picture, text in zip(pictures, texts, strict=True)]
        todo = {key: i for i, key in reversed(list(enumerate(keys))) if key not in self.made}
        order = [key for key in dict.fromkeys(keys) if key in todo]
        if order:
            befores = [pictures[todo[key]].image for key in order]
            said = [texts[todo[key]] for key in order]
            painter = self._painter(way)
            if way == "edit":
                paintings = counterfactual.edit(painter, befores, said, [seed] * len(order))
            else:
                paintings = counterfactual.regenerate(painter, said, [seed] * len(order))
            new = []
            for key, before, painting in zip(order, befores, paintings, strict=True):
                i = todo[key]
                made = self._looked_at(
                    Made(key, way, pictures[i].key, texts[i], seed, painter.name, painting.why, painting.cut,
                         seconds=round(painting.seconds, 4)),
                    before, painting.image,
                )  # fmt: skip
                self._remember(made, painting.image)
                new.append(made)
            if self.folder:
                lines.append(self.folder / FILE, map(asdict, new))
            self.count["asked"] += len(order)
            self.count["made"] += sum(made.why == "" for made in new)
            self.count["seconds"] += sum(made.seconds for made in new)
        found = [self.made[key] for key in keys]
        self._forget()
        return found

    def picture(self, key: str) -> Picture:
        """A picture that was made. Raises AuditError where there is none of this key."""
        if key in self._images:
            return Picture(key, self._images[key])
        if self.folder is None or key not in self.made:
            raise AuditError(f"pictures: there is no picture {key!r} in {self.folder or 'memory'}.")
        return kept(self.folder, key)

    def _key(self, way: str, base: str, text: str, seed: int) -> str:
        if way not in self.painters:
            raise AuditError(f'{PIPELINES[way]}: name a pipeline to {way} pictures with, or take "{way}" out of ways.')
        how = getattr(self.p, PIPELINES[way])
        parts = (how, base if way == "edit" else "", text, str(seed))
        return "made-" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]

    def _painter(self, way: str):
        how = getattr(self.p, PIPELINES[way])
        if how not in self._loaded:  # one pipeline may do both
            self._loaded[how] = self.painters[way]()
        return self._loaded[how]

    def _looked_at(self, made: Made, before: Image.Image, image: Image.Image | None) -> Made:
        """With what changed, and a reason in `why` where it is not a targeted change."""
        if image is None or made.way != "edit":
            return made
        change = counterfactual.changed(before, image)
        why = counterfactual.coherent(change, most=self.p.edit_region, rest=self.p.edit_rest)
        seen = {"box": change.box, "share": round(change.share, 4), "rest": round(change.rest, 4)}
        return Made(**{**asdict(made), **seen, "why": made.why or why})

    def _remember(self, made: Made, image: Image.Image | None = None) -> None:
        self.made[made.key] = made
        if image is None:
            return
        if self.folder is None:
            self._images[made.key] = image
            return
        path = _file(self.folder, made.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".part")
        image.save(beside, "PNG")
        beside.replace(path)

    def _forget(self) -> None:
        while self.folder is None and len(self.made) > IN_MEMORY:
            key, _ = self.made.popitem(last=False)
            self._images.pop(key, None)


PIPELINES = {"regenerate": "generator", "edit": "editor"}  # way -> the parameter that names its pipeline


def painters(p) -> dict[str, Callable]:
    """What loads the pipelines of a parameter file's ways: way -> loader."""
    return {
        way: partial(counterfactual.load, getattr(p, name), p.device, p.dtype)
        for way, name in PIPELINES.items()
        if way in p.ways
    }


def kept(folder: Path, key: str) -> Picture:
    """A picture of a folder's album, read each time it is looked at."""
    return Picture(key, partial(_read, _file(Path(folder), key)))


class Within:
    """A source with the pictures of albums among its own (`within`)."""

    def __init__(self, source: Source, folders: Sequence[Path]):
        self._source, self._seen = source, {}
        self._at = {row["key"]: folder for folder in folders for row in lines.read(folder / FILE)}
        self.made = {row["key"]: _made(row) for folder in folders for row in lines.read(folder / FILE)}

    def __getattr__(self, name: str):
        return getattr(self._source, name)

    def picture(self, key: str) -> Picture:
        return kept(self._at[key], key) if key in self._at else self._source.picture(key)

    def truth(self, key: str, question: str) -> str | None:
        known = self._known(key)
        return None if known is None else self._source.truth(known, question)

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


def within(source: Source, *folders: Path) -> Source:
    """A source that also hands out the counterfactual pictures of these stage folders, and grades them as it can.

    Its oracle looks at what a picture shows, not at what was asked of the editor: where the source can `read` one.
    """
    return Within(source, [Path(folder) for folder in folders if (Path(folder) / FILE).is_file()])


def _made(row: Mapping) -> Made:
    return Made(**{**row, "box": tuple(row["box"]) if row["box"] else None})


def _file(folder: Path, key: str) -> Path:
    return folder / "pictures" / f"{key}.png"


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise AuditError(f"pictures: {path} cannot be read ({error}); start its stage over.") from error
