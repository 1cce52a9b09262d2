"""A parameter file, read and checked before anything expensive starts.

One flat YAML file describes a whole run; the same names are the notebooks' parameters, `--set` on the command line and
the fields of `Params`. A file states its five required keys and what it chooses; all else has the default below.
docs/parameters.md is made from this module: `python -m auditkit.params > docs/parameters.md`.

What goes wrong here is said in one sentence that names the key: an unknown key (with its nearest neighbour), a wrong
type, YAML's `1e-5` that is a string, the same key twice, and settings that would train for zero steps in silence.
"""

import ast
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from auditkit import session, specs
from auditkit.errors import AuditError, say_errors_in_one_sentence
from auditkit.param_rules import Else, one_sentence, refuse_impossible
from auditkit.text import nearest, shortened, text_table, yaml_text
from auditkit.yaml_file import parse_yaml, read_yaml

OWN_RUN = frozenset(("images", "auditor", "target", "references"))  # whoever gives one of these means no run of ours
DEFAULTS_FILE = "params/demo.yaml"  # the notebooks' parameters cells repeat this file's values; a test holds them equal
WAYS = {"question": "", "regenerate": "generator", "edit": "editor"}  # way -> the key of the pipeline it needs


def _model(text: str) -> str:
    specs.parse(text)
    return text


def _pipeline(text: str) -> str:
    specs.parse_pipeline(text)
    return text


_MODEL = AfterValidator(_model)
Model = Annotated[str, _MODEL]
Pipeline = Annotated[str, AfterValidator(_pipeline)]
# What is more than the upper bounds is a slip of the keyboard, or nothing that numpy, torch or a disk could hold.
Count = Annotated[int, Field(ge=1, le=10_000_000)]
CountOrNone = Annotated[int, Field(ge=0, le=10_000_000)]
Few = Annotated[int, Field(ge=1, le=10_000)]
FewOrNone = Annotated[int, Field(ge=0, le=10_000)]
Tokens = Annotated[int, Field(ge=1, le=100_000)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # numpy takes no other
Way = Literal["question", "regenerate", "edit"]
Weight = Annotated[float, Field(ge=0, le=1000)]
Temperature = Annotated[float, Field(ge=0, le=10)]
Share = Annotated[float, Field(ge=0, le=1)]


class Stages(NamedTuple):
    """The stages, by number, whose records depend on a key: made with another value of it, they are refused."""

    numbers: str


ALL = Stages("00 01 02 03 04 05 06 07 08")
TEXTS = Stages("01 02 03 04 05 06 07 08")  # of what the models write
ASKING = Stages("02 03 04 05 06 07 08")
PICTURES = Stages("03 04 05")
NONE = Stages("")  # where a run is computed, how fast, and when it gives up


@dataclass(
    config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True),
    frozen=True,
    kw_only=True,
)
class Params:
    """The parameters of one run, checked (`load_params` makes it)."""

    # --- The run
    run_name: Annotated[str, NONE]
    """Its folder under outputs/."""
    params_file: Annotated[str, NONE] = ""
    """The file itself, filled in when it is read. State it in a file that papermill gets with `-f`."""
    seed: Annotated[Seed, ALL] = 0
    """Seed of the image draw, the sampling and the training."""

    # --- Images
    images: Annotated[str, ALL]
    """`miniature`, a folder with or without a questions.jsonl, or a data set, `hub:ID?...`."""
    train_images: Annotated[Count, Stages("00 04")] = 20000
    """How many pictures the auditor trains on; all there are, where there are fewer."""

    # --- Models
    # "miniature:NAME" (shipped), a local folder, a Hugging Face id, a server's address; see specs.py
    auditor: Annotated[Model, ALL]
    """The model that writes the questions, and is trained to."""
    target: Annotated[Model, ALL]
    """The model under audit."""
    peer: Annotated[Model, Stages("00 01 06 08")] = ""
    """A larger model of the target's family to compare with; empty for none."""
    references: Annotated[list[Model], ALL]
    """The models whose consensus the target is held against."""
    device: Annotated[str, NONE] = "auto"
    """Where models run: auto, cpu, mps, cuda or cuda:N."""
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], ALL] = "auto"
    """Number format of the weights; auto: bfloat16 or else float16 on a GPU, float32 elsewhere."""
    memory: Annotated[Literal["together", "turns"], NONE] = "together"
    """together: all models stay on the device. turns: each is there only while it writes."""
    engine: Annotated[Literal["local", "ray"], NONE] = "local"
    """What runs the audit: local, this process; ray, a Ray Data job over many GPUs and nodes."""
    workers: Annotated[Few, NONE] = 1
    """Sets of models that answer at once, under ray."""
    batch_size: Annotated[Few, NONE] = 16
    """Prompts in one forward pass. It decides speed and memory, and which questions an audit happens to draw."""
    report_to: Annotated[list[Literal["trackio", "wandb", "tensorboard"]], NONE] = Field(
        default_factory=lambda: list[Literal["trackio", "wandb", "tensorboard"]]()
    )
    """Trackers that both trainings report to, each an extra of its name; their logs lie in the stage's folder."""

    # --- Counterfactual images
    ways: Annotated[list[Way], PICTURES] = Field(default_factory=lambda: list[Way](["question"]))
    """How probes are made. A list takes turns, so a way given twice has two shares of the pictures."""
    generator: Annotated[Pipeline, PICTURES] = ""
    """The pipeline that makes a picture from a caption, for regenerate: a folder or a hub id."""
    editor: Annotated[Pipeline, PICTURES] = ""
    """The pipeline that changes a picture by a command, for edit: a folder or a hub id."""
    edit_region: Annotated[float, Field(gt=0, le=1), Else("is not in (0, 1], a share of the picture"), PICTURES] = 0.5
    """Largest share of a picture that an edit may change."""
    edit_rest: Annotated[float, Field(ge=0, le=1), Else("is not in [0, 1], a similarity"), PICTURES] = 0.9
    """Least structural similarity (SSIM) of the rest of an edited picture, 1 being untouched."""
    picture_check: Annotated[Model, PICTURES] = ""
    """A CLIP or SigLIP model that must also find what was wished for in a picture; empty for none."""
    picture_gain: Annotated[float, Field(ge=0, lt=1), Else("is not in [0, 1), the cosine to be above"), PICTURES] = 0.2
    """The picture check must find a cosine above this between the change of the picture and that of the text."""

    # --- Asking and comparing
    quorum: Annotated[
        float, Field(gt=0, le=1), Else("is not in (0, 1], the share of the references that must agree"), ASKING
    ] = 0.6
    """Share of the references that must agree before there is a consensus."""
    same: Annotated[Model, ASKING] = "text"
    """When two answers mean the same: `text` (normalised), `embedding` (extra `embed`), or a model that is asked."""
    temperature: Annotated[Temperature, TEXTS] = 0.7
    """Temperature at which the auditor writes, 0 being greedy. The models under test always answer greedily."""
    min_token_probability: Annotated[Share, ASKING] = 1e-5
    """A question is well-formed if the untrained auditor gives each of its tokens this much. A vocabulary of some
    hundreds of words wants a larger value."""
    max_question_tokens: Annotated[int, Field(ge=4, le=100_000), TEXTS] = 96
    """Tokens of the longest note and question; a caption and its check take more than a question."""
    max_answer_tokens: Annotated[Tokens, TEXTS] = 32
    """Tokens of the longest answer, where its model does not end it before. Models that answer in a word or two need 8;
    answers that this cut are counted, and above a tenth the stage says so."""

    # --- 02, disagreement before training
    baseline_images: Annotated[Count, Stages("02")] = 2000
    """Pictures for the search success of the untrained auditor."""

    # --- 04, training the auditor with GRPO
    grpo_steps: Annotated[Count, Stages("04")] = 1000
    """Optimiser steps (1000 in the paper)."""
    grpo_images: Annotated[Few, Stages("04")] = 32
    """Pictures a step."""
    group_size: Annotated[
        int,
        Field(ge=2, le=1000),
        Else("is too small, the least is 2: GRPO compares the questions of a group with each other", both=False),
        Stages("04"),
    ] = 8
    """Questions written for each picture and compared with each other; 32 x 8 is the paper's batch of 256."""
    grpo_learning_rate: Annotated[
        float, Field(gt=0, le=1), Else("trains nothing; write more than 0", both=False), Stages("04")
    ] = 3e-6
    """Learning rate (the paper's; a LoRA adapter often takes ten times as much)."""
    grpo_temperature: Annotated[
        float,
        Field(gt=0, le=10),
        Else("makes all questions of a group equal, which teaches nothing; use more", both=False),
        Stages("04"),
    ] = 1.0
    """As temperature, while the auditor learns: a group that writes alike teaches nothing."""
    grpo_warmup: Annotated[
        float,
        Field(ge=0, lt=1),
        Else("is the share of the steps that warm up; write less than 1, and not less than 0"),
        Stages("04"),
    ] = 0.1
    """Share of the steps over which the learning rate rises (0.1 in the paper)."""
    grpo_last_learning_rate: Annotated[Share, Stages("04")] = 1e-6
    """The learning rate falls to this, as a cosine (the paper's)."""
    grpo_micro_batch: Annotated[CountOrNone, NONE] = 0
    """Questions in one forward and backward pass, for memory; 0 for all of a step."""
    grpo_rollouts: Annotated[Literal["transformers", "vllm_colocate", "vllm_server"], NONE] = "transformers"
    """What generates the questions in training: transformers, or one of TRL's two ways of using vLLM."""
    grpo_beta: Annotated[Weight, Stages("04")] = 0.0
    """Weight of staying near the untrained auditor (KL divergence); 0 for none."""
    grpo_lora_rank: Annotated[Few, Stages("04")] = 32
    """Rank of the LoRA adapter."""
    replay_weight: Annotated[Weight, Stages("04")] = 0.15
    """Weight of the supervised replay of the auditor's own successes, which keeps coverage; 0 for none."""
    replay_clusters: Annotated[Few, Stages("04")] = 20
    """Clusters of texts over which the replay is balanced."""
    grpo_checkpoints: Annotated[Few, Stages("04")] = 5
    """Checkpoints kept, evenly spaced; the last is the trained auditor."""
    grpo_patience: Annotated[CountOrNone, NONE] = 10
    """Steps in a row, of one way, that show a collapse before training goes back and closes that kind; 0: never."""

    # --- 05 and 06, the audit and its findings
    audit_probes: Annotated[Count, Stages("05")] = 20000
    """Probes of one audit, over all checkpoints (the paper rates search success on 20,000 pictures)."""
    candidates: Annotated[Few, Stages("05")] = 1
    """Questions written about a picture by all checkpoints but the last; one is asked. Under a search: probes written
    for each that is asked, on as many pictures as there are."""
    search: Annotated[Literal["once", "adaptive", "follow"], Stages("05")] = "once"
    """What decides what is asked: once, nothing that is heard in the audit; follow, findings are followed to questions
    and pictures like theirs; adaptive, and what explores is chosen by what the references say of a pool."""
    gates: Annotated[list[Literal["reproduces", "sound", "visual"]], Stages("05")] = Field(default_factory=list)
    """Optional checks of a finding, beyond the consensus."""
    repeats: Annotated[FewOrNone, Stages("05")] = 4
    """Times a finding is put to the models again, sampled, for the gates reproduces and sound."""
    paraphraser: Annotated[Model, Stages("05")] = ""
    """A model that says a finding's question in other words, which is put again too; empty for none."""
    blind_candidates: Annotated[Few, Stages("05")] = 40
    """Fixed questions tried to find the best one that needs no look at the picture."""
    blind_images: Annotated[Count, Stages("05")] = 1000
    """Pictures that each fixed question is asked about."""
    failure_types: Annotated[Few, Stages("06 07")] = 15
    """Most failure types the findings are grouped into (the paper names fifteen)."""
    types_by: Annotated[Literal["text", "embedding"], Stages("06 07")] = "text"
    """What makes findings alike: text (their words), or embedding (their meaning, extra `embed`)."""
    namer: Annotated[Model, Stages("06")] = ""
    """A model that is asked for a short name of each failure type; empty: the words its questions share."""

    # --- 07, repairing the target
    route: Annotated[Literal["unlabeled", "labeled"], Stages("05 07")] = "unlabeled"
    """unlabeled: learn from the findings. labeled: 05 probes the source's labelled examples and 07 adds a sample to
    each of them."""
    earlier: Annotated[list[str], Stages("07")] = Field(default_factory=list)
    """Runs of earlier rounds whose findings are learnt too."""
    rectify_steps: Annotated[Count, Stages("07")] = 2000
    """Optimiser steps."""
    rectify_batch: Annotated[Few, Stages("07")] = 64
    """Examples a step."""
    rectify_micro_batch: Annotated[CountOrNone, NONE] = 0
    """Examples in one forward and backward pass, for memory; 0 for all of a step."""
    rectify_learning_rate: Annotated[
        float, Field(gt=0, le=1), Else("trains nothing; write more than 0", both=False), Stages("07")
    ] = 1e-4
    """Learning rate of a LoRA adapter; all weights want a tenth."""
    rectify_lora_rank: Annotated[FewOrNone, Stages("07")] = 16
    """Rank of the LoRA adapter; 0: all weights of the text part are trained instead."""
    rectify_original: Annotated[CountOrNone, Stages("07")] = 0
    """Labelled original examples drawn; those the target knows are mixed in against forgetting. 0: none."""

    # --- 08, before and after
    benchmark_examples: Annotated[Count, Stages("01 08")] = 1000
    """Held-out examples for each skill."""

    # --- Advanced
    # What ablations and control arms of the studies change; an audit of one's own leaves it alone.
    grpo_quorum: Annotated[float, Field(gt=0, le=1), Else("is not in (0, 1], as for quorum"), Stages("04")] = 1.0
    """As quorum, for the reward in training: stricter, so that no blind spot of a majority is learnt."""
    disagreement_weight: Annotated[Weight, Stages("04")] = 1.0
    """Weight of the reward for a failure of the target; 0 leaves the replay alone to teach."""
    format_weight: Annotated[Weight, Stages("04")] = 1.0
    """Weight of the reward for one well-formed question or wish."""
    coverage_weight: Annotated[Weight, Stages("04")] = 0.0
    """Weight of the reward for novelty; 0 for none."""
    known_discount: Annotated[Share, Stages("04")] = 0.0
    """How much less a failure earns after n like it: (1 + n) to the power of minus this; 0 for no less."""
    asks: Annotated[Literal["auditor", "untrained", "source"], Stages("05")] = "auditor"
    """Who writes the probes: the auditor's checkpoints, the untrained auditor alone, or the images' own questions."""
    rectify_on: Annotated[Literal["findings", "consensus", "labels"], Stages("07")] = "findings"
    """What the repair learns: findings, or as controls whatever the references agree on, or labelled examples."""
    rectify_pairs: Annotated[CountOrNone, Stages("07")] = 0
    """How many of these, over failure types in turn; 0: as many as there are, and agreed probes beside."""
    benchmark_images: Annotated[str, Stages("08")] = ""
    """Other images to take the benchmark from, as in `images`; empty for the run's own."""


FIELDS: dict[str, FieldInfo] = vars(Params)["__pydantic_fields__"]  # name -> what is said of it above
REQUIRED = [name for name, field in FIELDS.items() if field.is_required()]
DEFAULTS = {
    name: field.get_default(call_default_factory=True) for name, field in FIELDS.items() if name not in REQUIRED
}
MODELS = [name for name, field in FIELDS.items() if field.annotation == list[Model] or _MODEL in field.metadata]


def matters_to(number: str) -> tuple[str, ...]:
    """The keys that the records of a stage, by its number, depend on.

    >>> matters_to("02")[-1], matters_to("08")[-1]
    ('baseline_images', 'benchmark_images')
    """
    return tuple(name for name in FIELDS if number in stages_of(name))


def stages_of(name: str) -> list[str]:
    """The numbers of the stages whose records depend on a key; none for what only decides where and how fast."""
    (stages,) = [mark for mark in FIELDS[name].metadata if isinstance(mark, Stages)]
    return stages.numbers.split()


def keys_naming(p: Params, text: str) -> str:
    """The keys of models whose value is this text, or holds it, with commas between them; "" for none."""
    named = {key: getattr(p, key) for key in MODELS}
    return ", ".join(key for key, value in named.items() if text in (value if isinstance(value, list) else [value]))


def project_root() -> Path:
    """The project folder: the nearest of the working folder and its parents with a `params/`, else the former."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "params").is_dir()), here)


def load_params(path: str | Path, **overrides) -> Params:
    """Read a parameter file and check every value.

    Args:
        path: the YAML file, relative to the working folder or to the project folder.
        overrides: values that replace the file's.

    Raises:
        AuditError: no such file, not a mapping, an unknown or missing key, a wrong type, or settings that cannot work.
    """
    file = find_params_file(path)
    values = _read(file)
    _refuse_unknown(values, file.name)
    _refuse_unknown(overrides, "the settings given beside the file")
    named = values.get("params_file")
    if named is not None and Path(str(named)).name != file.name:
        raise AuditError(
            f"{file.name}: params_file says {shortened(named)}; write the file's own name, {_shown(file)}."
        )
    return _checked(values | overrides | {"params_file": _shown(file)}, file.name)


def _checked(values: dict, where: str) -> Params:
    """The parameters of these values and the defaults of all others."""
    missing = [name for name in REQUIRED if name not in values]
    if missing:
        raise AuditError(f"{where}: missing {', '.join(missing)}; docs/parameters.md explains every key.")
    try:
        p = Params(**values)
    except ValidationError as error:
        raise AuditError(one_sentence(error, values, FIELDS)) from None
    refuse_impossible(p, WAYS)
    return p


class Resolved(NamedTuple):
    """One key of a run, as `auditkit params` shows it."""

    key: str
    value: Any
    source: str  # file, --set or default
    about: str


def resolved(path: str | Path, **overrides) -> list[Resolved]:
    """Every key's value and where it comes from, in the order of the schema.

    Args:
        path: the parameter file, as for `load_params`.
        overrides: values that replace the file's, as `--set` gives them.

    Raises:
        AuditError: as `load_params`.
    """
    p = load_params(path, **overrides)
    stated = {"params_file": "file"} | dict.fromkeys(_read(find_params_file(path)), "file")
    stated |= dict.fromkeys(overrides, "--set")
    return [Resolved(key, getattr(p, key), stated.get(key, "default"), about(key)) for key in FIELDS]


def about(key: str) -> str:
    """What a key is, in a line."""
    return " ".join((FIELDS[key].description or "").split())


def from_notebook(names: Mapping) -> Params:
    """The parameters of a notebook: call it as `from_notebook(globals())` after the parameters cell.

    The file named by `params_file` is the base. On top come, in this order,
    1) names of the parameters cell that somebody edited: their value is no longer the default, params/demo.yaml's;
    2) whatever papermill injected (`-p`, `-f`), even where it happens to equal that default.
    So editing only `params_file` in JupyterLab switches to that file as a whole, and the command line always wins.
    Where papermill is given images or models of one's own and no `params_file`, no file is the base: what is not given
    comes from the defaults, never from the demo.

    `run_name` and `params_file` may be chosen once for all notebooks of a JupyterLab: those of a notebook whose cell
    says `for_all_notebooks: bool = True` hold for the others, unless they are edited there. The values that hold are
    printed, with where each comes from.

    Raises:
        AuditError: as `load_params`, and for an injected name that neither notebook nor `Params` has (papermill only
            warns).
    """
    say_errors_in_one_sentence()
    injected = _injected(names)
    own = set(names.get("__annotations__", {})) | {"resume"}
    _refuse_unknown([name for name in injected if name not in own], "the parameters given to the notebook")
    default = vars(load_params(DEFAULTS_FILE)) if (project_root() / DEFAULTS_FILE).is_file() else {}
    names = dict(names)
    chosen = {} if injected or "for_all_notebooks" in own else session.chosen(project_root())
    chosen = {name: value for name, value in chosen.items() if name in own and names[name] == default.get(name)}
    names |= chosen
    edited = {name for name in own & FIELDS.keys() if name not in default or names[name] != default[name]}
    apart = bool(injected & OWN_RUN) and "params_file" not in injected
    given = {
        name: names[name] for name in (injected if apart else edited | injected) - {"params_file", *own - FIELDS.keys()}
    }
    file = "" if apart else names.get("params_file", DEFAULTS_FILE)
    p = _checked(given, "the parameters given to the notebook") if apart else load_params(file, **given)
    stated = _read(find_params_file(file)) if file else {}
    told = {
        name: "given to this notebook" if name in injected else "this cell" for name in given | {"params_file": file}
    }
    print(_values_and_sources(p, stated, told | dict.fromkeys(chosen, "notebook 00"), own))
    if not injected and names.get("for_all_notebooks"):
        session.choose(project_root(), run_name=p.run_name, params_file=file)
        print("The other notebooks of this JupyterLab follow: their cells need not be edited.")
    print(f"{p.run_name}: {file or 'no file'}", flush=True)
    return p


def _values_and_sources(p: Params, stated: Mapping, told: Mapping[str, str], own: set[str]) -> str:
    """The values of a notebook's own parameters, and of all that are neither its file's nor the defaults, as a table.

    Args:
        stated: what the parameter file has.
        told: name -> who gave it another value.
        own: names of the notebook's parameters cell.
    """
    rows = []
    for name in FIELDS:
        value, before = getattr(p, name), stated.get(name, DEFAULTS.get(name))
        source = Path(p.params_file).name if name in stated else "default"
        if name in told and (value != before or name == "params_file"):
            source = told[name]
        if name in own or source == told.get(name):
            rows.append([name, yaml_text(value), source])
    return text_table(["parameter", "value", "from"], rows, "lll")


def parse_setting(text: str) -> tuple[str, object]:
    """Read one `key=value` of the command line.

    >>> parse_setting("grpo_steps=20"), parse_setting("references=[a, b]"), parse_setting("grpo_learning_rate=1e-5")
    (('grpo_steps', 20), ('references', ['a', 'b']), ('grpo_learning_rate', 1e-05))
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise AuditError(f"--set {text[:80]}: write key=value, as in --set grpo_steps=20.")
    _refuse_unknown([key], "--set")
    kind = FIELDS[key].annotation
    if kind is str or get_origin(kind) is Literal:
        return key, value
    if kind is float:
        try:
            return key, float(value)
        except ValueError:
            return key, value  # refused later, with the key's name
    try:
        return key, parse_yaml(value, "")
    except AuditError:
        shown = text if len(text) <= 80 else f"{text[:80]}..."
        raise AuditError(f"--set {shown}: not readable; a list is written as in references=[a, b].") from None


def find_params_file(path: str | Path) -> Path:
    """The parameter file itself: `path` as it is, or else from the project folder.

    Raises AuditError when neither is a file.
    """
    path = Path(path)
    for candidate in (path, project_root() / path):
        if is_file(candidate):
            return candidate
    there = sorted(file.name for file in (project_root() / "params").glob("*.yaml"))
    near = nearest(path.name, there)
    hint = f"did you mean params/{near}?" if near else f"params/ holds {', '.join(there) or 'no file'}."
    raise AuditError(f"No parameter file {str(path)[:200]}: {hint}")


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that is too long for one, or has a NUL in it, is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; a name that is too long for one, or has a NUL in it, is none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _read(file: Path) -> dict:
    values = read_yaml(file)
    if not isinstance(values, dict):
        raise AuditError(f"{file.name}: expected lines of `key: value`, as in params/demo.yaml.")
    return values


def _shown(file: Path) -> str:
    """The path as a person would type it: from the project folder where it lies inside."""
    file, base = file.resolve(), project_root().resolve()
    return file.relative_to(base).as_posix() if file.is_relative_to(base) else str(file)


def _refuse_unknown(names, where: str) -> None:
    for name in names:
        if name not in FIELDS:
            longer = [key for key in FIELDS if key.endswith(f"_{name}")]  # learning_rate: of which training?
            near = " or ".join(longer) or nearest(name, FIELDS)
            hint = f"did you mean {near}?" if near else "docs/parameters.md lists every key."
            raise AuditError(f"{where}: unknown key {str(name)[:80]}; {hint}")


def _injected(names: Mapping) -> set[str]:
    """The names papermill set: those assigned in cells that begin with its comment, as far as this kernel ran them."""
    cells = [source for source in names.get("In", []) if source.startswith("# Parameters\n")]
    statements = [statement for source in cells for statement in ast.parse(source).body]
    targets = [target for line in statements if isinstance(line, ast.Assign) for target in line.targets]
    return {target.id for target in targets if isinstance(target, ast.Name)}


# ---- docs/parameters.md --------------------------------------------------------------------------------------------

INTRODUCTION = """# Parameters

One YAML file describes a run. It must state `run_name`, `images`, `auditor`, `target` and `references`; every other key
has a default. `auditkit params FILE` prints all values of a file and where each comes from. On the command line,
`--set KEY=VALUE` replaces a value. A key that no table names is refused.

A model is named by `miniature:NAME`, a local folder, a Hugging Face id, or a server's address. Options follow a
question mark, as in `google/gemma-3-27b-it?bits=4`; `auditkit/specs.py` lists them. The defaults suit models of some
billion parameters; "the paper" is arXiv 2512.16921.

This page is made from `auditkit/params.py`: `python -m auditkit.params > docs/parameters.md`.
"""


def as_markdown() -> str:
    """The page docs/parameters.md: a table for each group of keys."""
    lines = [INTRODUCTION.rstrip()]
    for group, said in re.findall(r"^    (?:# --- (.+)|(\w+): Annotated)", inspect.getsource(Params), re.MULTILINE):
        if group:
            lines += ["", f"## {group}", "", "| key | type | default | what it is |", "|---|---|---|---|"]
        else:
            lines.append(f"| `{said}` | {_type_in_words(said)} | {_default_in_words(said)} | {about(said)} |")
    return "\n".join(lines) + "\n"


def _type_in_words(key: str) -> str:
    field = FIELDS[key]
    items = get_args(field.annotation)
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{item}`" for item in items)
    if field.annotation == list[Model]:
        return "list of models"
    if get_origin(field.annotation) is list:
        return f"list of {', '.join(f'`{word}`' for word in get_args(items[0])) or 'texts'}"
    if field.annotation is str:
        return "model" if key in MODELS else "pipeline" if key in WAYS.values() else "text"
    signs: dict[type, str] = {Ge: "≥", Gt: ">", Le: "≤", Lt: "<"}
    bounds = [f"{signs[type(mark)]} {getattr(mark, type(mark).__name__.lower())}" for mark in field.metadata
              if type(mark) in signs]  # fmt: skip
    return " ".join(["whole number" if field.annotation is int else "number", ", ".join(bounds)]).strip()


def _default_in_words(key: str) -> str:
    if key in REQUIRED:
        return "required"
    return f"`{yaml.safe_dump(DEFAULTS[key], default_flow_style=True).splitlines()[0]}`"


if __name__ == "__main__":
    print(as_markdown(), end="")
