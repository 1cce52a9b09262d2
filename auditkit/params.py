"""A parameter file, read and checked before anything expensive starts.

One flat YAML file describes a whole run; the same names are the notebooks' parameters, `--set` on the command line and
the fields of `Params`. Everything a run needs is stated in its file: keys without a default below must be there.

What goes wrong here is said in one sentence that names the key: an unknown key (with its nearest neighbour), a wrong
type, YAML's `1e-5` that is a string, the same key twice, and settings that would train for zero steps in silence.
"""

import ast
import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from auditkit import specs
from auditkit.errors import AuditError

DEFAULTS_FILE = "params/demo.yaml"  # the notebooks' parameters cells repeat this file's values; a test holds them equal


@dataclass(frozen=True, kw_only=True)
class Params:
    """The parameters of one run, checked (`load_params` makes it)."""

    # --- the run
    run_name: str  # its folder under outputs/
    params_file: str  # the file itself, so that a notebook given only the values knows where they came from
    seed: int  # of the image draw, the sampling and the training

    # --- images
    images: str  # "miniature", a folder with or without a questions.jsonl, or a data set, hub:ID?...
    train_images: int  # how many pictures the auditor trains on

    # --- models: "miniature:NAME" (shipped), a local folder, a Hugging Face id, a server's address; see specs.py
    auditor: str  # writes the questions
    target: str  # the model under audit
    peer: str = ""  # a larger model of the target's family to compare with; "" for none
    references: list[str]  # the models whose consensus the target is held against
    device: str = "auto"  # auto, cpu, mps, cuda or cuda:N
    dtype: str = "auto"  # auto, float32, bfloat16 or float16
    memory: str = "together"  # or turns: each model is on the device only while it writes
    engine: str = "local"  # of the audit: local, or ray, a Ray Data job over many GPUs and nodes
    workers: int = 1  # sets of models that answer at once, under ray
    batch_size: int = 128  # prompts in one forward pass: speed and memory, and which questions an audit happens to draw

    # --- pictures of the auditor's own
    ways: list[str] = dataclasses.field(default_factory=lambda: ["question"])  # question, regenerate, edit: take turns
    generator: str = ""  # the pipeline that makes a picture from a caption, for regenerate: a folder, or a hub id
    editor: str = ""  # the pipeline that changes a picture by a command, for edit
    edit_region: float = 0.5  # largest share of a picture that an edit may change
    edit_rest: float = 0.9  # least structural similarity (SSIM) of the rest, 1 being untouched
    picture_judge: str = ""  # a CLIP or SigLIP model that must also find what was wished for; "" for none
    picture_gain: float = 0.2  # cosine that it must find above this, between the pictures' change and the wish's

    # --- asking and comparing
    quorum: float = 0.6  # share of the references that must agree before there is a consensus, in (0, 1]
    same: str = "text"  # when two answers mean the same: text (normalised), embedding (extra `embed`), a model's spec
    temperature: float = 1.0  # at which the auditor writes, 0 greedily; the models under test always answer greedily
    min_token_probability: float = 1e-3  # a question is well-formed if the untrained auditor gives each token this much
    max_question_tokens: int = 32  # longest note and question
    max_answer_tokens: int = 8  # longest answer

    # --- 02, what is there before training
    baseline_images: int  # pictures for the untrained auditor's search success

    # --- 04, training the auditor with GRPO
    grpo_steps: int  # optimiser steps
    grpo_images: int  # pictures a step
    group_size: int  # questions written for each of them, compared with each other; at least 2
    grpo_learning_rate: float
    grpo_temperature: float = 1.0  # as temperature, while it learns: a group that writes alike teaches nothing
    grpo_quorum: float = 1.0  # as quorum, for the reward: stricter, so that no blind spot of a majority is learnt
    grpo_warmup: float = 0.05  # share of the steps over which the learning rate rises
    grpo_last_learning_rate: float = 0.0  # to which it falls, as a cosine
    grpo_micro_batch: int = 0  # questions in one forward and backward pass, for memory; 0 for all of a step
    grpo_rollouts: str = "transformers"  # who generates them: transformers, or TRL's vllm_colocate or vllm_server
    grpo_beta: float  # weight of staying near the untrained auditor (KL); 0 for none
    grpo_lora_rank: int  # rank of the adapter
    replay_weight: float  # of the supervised replay of its own successes, which keeps coverage; 0 for none
    replay_clusters: int  # text clusters the replay is balanced over
    disagreement_weight: float = 1.0  # of the reward for a failure of the target; 0 leaves replay alone to teach
    format_weight: float = 1.0  # of the reward for one well-formed question or wish
    coverage_weight: float  # of the novelty reward; 0 for none
    grpo_checkpoints: int  # kept, evenly spaced; the last is the trained auditor
    grpo_patience: int = 10  # steps of one way in a row that show a collapse before training stops; 0: never

    # --- 05 and 06, the audit and its findings
    asks: str = "auditor"  # (its checkpoints), untrained (it alone), or as a control source (the images' own questions)
    audit_probes: int  # probes of one audit, over all checkpoints
    candidates: int = 1  # questions written about a picture by all checkpoints but the last; one is asked
    gates: list[str] = dataclasses.field(default_factory=list)  # beyond the consensus: reproduces, sound, visual
    repeats: int = 4  # times a finding is put to the models again, with chance, for the gates reproduces and sound
    paraphraser: str = ""  # a model that says a finding's question in other words, which is put again too; "" for none
    blind_candidates: int  # fixed questions tried to find the best one that needs no look at the picture
    blind_images: int  # pictures each of them is asked about
    failure_types: int  # most failure types the findings are grouped into
    types_by: str = "text"  # what makes findings alike: text (their words), or embedding (extra `embed`)
    namer: str = ""  # a model's spec, asked for a short name of each failure type; "": the words its questions share

    # --- 07, repairing the target
    route: str = "unlabeled"  # or labeled: 05 probes the source's labelled examples, 07 adds the samples to all of them
    earlier: list[str] = dataclasses.field(default_factory=list)  # runs, of rounds before, whose findings it learns too
    rectify_steps: int  # optimiser steps
    rectify_batch: int  # examples a step
    rectify_micro_batch: int = 0  # examples in one forward and backward pass, for memory; 0 for all of a step
    rectify_learning_rate: float
    rectify_lora_rank: int  # rank of the adapter; 0: all weights of the text part are trained instead
    rectify_on: str = "findings"  # or as controls consensus (whatever references agree on), labels (labelled examples)
    rectify_pairs: int = 0  # of these, over failure types in turn; 0: as many as there are, and agreed probes beside
    rectify_original: int  # labelled original examples, those the target knows are mixed in against forgetting; 0: none

    # --- 08, before and after
    benchmark_examples: int  # held-out examples for each skill
    benchmark_images: str = ""  # other images to take them from, as in `images`; "" for the run's own


FIELDS = {field.name: field for field in dataclasses.fields(Params)}
DEFAULTS = {
    name: field.default if field.default is not dataclasses.MISSING else field.default_factory()
    for name, field in FIELDS.items()
    if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
}
REQUIRED = [name for name, field in FIELDS.items() if name not in DEFAULTS]
CHOICES = {
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "memory": ("together", "turns"),
    "types_by": ("text", "embedding"),
    "engine": ("local", "ray"),
    "asks": ("auditor", "untrained", "source"),
    "rectify_on": ("findings", "consensus", "labels"),
    "route": ("unlabeled", "labeled"),
    "grpo_rollouts": ("transformers", "vllm_colocate", "vllm_server"),
}
GATES = ("reproduces", "sound", "visual")
WAYS = {"question": "", "regenerate": "generator", "edit": "editor"}  # way -> the key of the pipeline it needs
AT_LEAST = {  # the smallest sensible value, and whose it is
    0: "seed temperature min_token_probability grpo_beta replay_weight disagreement_weight format_weight "
    "coverage_weight rectify_original grpo_warmup grpo_last_learning_rate grpo_micro_batch grpo_patience "
    "rectify_micro_batch rectify_pairs rectify_lora_rank repeats",
    1: "workers train_images batch_size max_answer_tokens baseline_images blind_candidates blind_images grpo_steps "
    "grpo_images grpo_lora_rank replay_clusters grpo_checkpoints audit_probes candidates failure_types rectify_steps "
    "rectify_batch benchmark_examples",
    2: "group_size",
    4: "max_question_tokens",
}


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
        raise AuditError(f"{file.name}: params_file says {named!r}; write the file's own name, {_shown(file)}.")
    missing = [name for name in REQUIRED if name not in values and name not in overrides]
    if missing:
        raise AuditError(f"{file.name}: missing {', '.join(missing)}; params/demo.yaml shows a complete file.")
    values = values | overrides | {"params_file": _shown(file)}
    p = Params(**{name: _typed(name, value) for name, value in values.items()})
    _refuse_impossible(p)
    return p


def from_notebook(names: Mapping) -> Params:
    """The parameters of a notebook: call it as `from_notebook(globals())` after the parameters cell.

    The file named by `params_file` is the base. On top come, in this order,
    1) names of the parameters cell that somebody edited: their value is no longer the default, params/demo.yaml's;
    2) whatever papermill injected (`-p`, `-f`), even where it happens to equal that default.
    So editing only `params_file` in JupyterLab switches to that file as a whole, and the command line always wins.

    Raises:
        AuditError: as `load_params`, and for an injected name that neither notebook nor `Params` has (papermill only warns).
    """
    injected = _injected(names)
    own = set(names.get("__annotations__", {})) | {"resume"}
    _refuse_unknown([name for name in injected if name not in own], "the parameters given to the notebook")
    default = vars(load_params(DEFAULTS_FILE)) if (project_root() / DEFAULTS_FILE).is_file() else {}
    edited = {name for name in own & FIELDS.keys() if name not in default or names[name] != default[name]}
    given = {name: names[name] for name in (edited | injected) - {"params_file", *own - FIELDS.keys()}}
    return load_params(names.get("params_file", DEFAULTS_FILE), **given)


def parse_setting(text: str) -> tuple[str, object]:
    """Read one `key=value` of the command line.

    >>> parse_setting("grpo_steps=20"), parse_setting("references=[a, b]"), parse_setting("grpo_learning_rate=1e-5")
    (('grpo_steps', 20), ('references', ['a', 'b']), ('grpo_learning_rate', 1e-05))
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise AuditError(f"--set {text}: write key=value, as in --set grpo_steps=20.")
    _refuse_unknown([key], "--set")
    if FIELDS[key].type is str:
        return key, value
    if FIELDS[key].type is float:
        try:
            return key, float(value)
        except ValueError:
            return key, value  # refused later, with the key's name
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise AuditError(f"--set {text}: not readable; a list is written as in references=[a, b].") from None


def find_params_file(path: str | Path) -> Path:
    """The parameter file itself: `path` as it is, or else from the project folder.

    Raises AuditError when neither is a file.
    """
    path = Path(path)
    for candidate in (path, project_root() / path):
        if candidate.is_file():
            return candidate
    there = sorted(file.name for file in (project_root() / "params").glob("*.yaml"))
    near = difflib.get_close_matches(path.name, there, 1)
    hint = f"did you mean params/{near[0]}?" if near else f"params/ holds {', '.join(there) or 'no file'}."
    raise AuditError(f"No parameter file {path}: {hint}")


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice; plain YAML would keep the last in silence."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise AuditError(f"{Path(self.name).name}: {twice[0]} is given twice; keep one.")
        return super().construct_mapping(node, deep)


def _read(file: Path) -> dict:
    try:
        with file.open(encoding="utf-8") as stream:
            values = yaml.load(stream, _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise AuditError(f"{file.name}{where}: not readable as YAML ({getattr(error, 'problem', error)}).") from None
    if not isinstance(values, dict):
        raise AuditError(f"{file.name}: expected lines of `key: value`; params/demo.yaml shows a complete file.")
    return values


def _shown(file: Path) -> str:
    """The path as a person would type it: from the project folder where it lies inside."""
    file, base = file.resolve(), project_root().resolve()
    return file.relative_to(base).as_posix() if file.is_relative_to(base) else str(file)


def _refuse_unknown(names, where: str) -> None:
    for name in names:
        if name not in FIELDS:
            near = difflib.get_close_matches(str(name), FIELDS, 1)
            hint = f"did you mean {near[0]}?" if near else "params/demo.yaml lists every key."
            raise AuditError(f"{where}: unknown key {name}; {hint}")


def _typed(name: str, value):
    """The value as its field's type, or an AuditError that says what to write."""
    kind = FIELDS[name].type
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if value != value or abs(value) == float("inf"):
            raise AuditError(f"{name}: {value} is not a number one can use; write a finite one.")
        return float(value)
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str):
        return value
    if kind == list[str] and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return list(value)
    if kind is float and isinstance(value, str) and re.fullmatch(r"[+-]?\d+\.?\d*[eE][+-]?\d+", value.strip()):
        mantissa, exponent = re.split("[eE]", value.strip())
        mantissa = mantissa if "." in mantissa else mantissa + ".0"
        exponent = exponent if exponent[0] in "+-" else "+" + exponent
        raise AuditError(f"{name}: YAML reads {value} as a string; write {mantissa}e{exponent}.")
    if kind is str and isinstance(value, (bool, int, float)):
        raise AuditError(f"{name}: YAML reads this as {value!r}, not as text; put it in quotes.")
    wanted = {int: "a whole number", float: "a number", str: "text"}.get(kind, "a list of texts, as in [a, b]")
    raise AuditError(f"{name}: expected {wanted}, got {value!r}.")


def _refuse_impossible(p: Params) -> None:
    """Raise for the first setting, or pair of settings, that could not do what it says."""
    for spec in (p.auditor, p.target, *p.references, *filter(None, [p.peer, p.paraphraser, p.namer]), p.same):
        specs.parse(spec)
    if p.same not in ("text", "embedding") and not re.search("[/:]", p.same):
        raise AuditError(f'same: "{p.same}" is none of text, embedding, or a model (a folder, a hub id, a server).')
    if specs.parse(p.auditor).engine != "transformers" or "bits" in specs.parse(p.auditor).options:
        raise AuditError(f'auditor: "{p.auditor}" cannot be trained; name a folder or a hub id, without ?bits.')
    for name, least in [(name, least) for least, names in AT_LEAST.items() for name in names.split()]:
        if getattr(p, name) < least:
            why = ": GRPO compares the questions of a group with each other" if name == "group_size" else ""
            raise AuditError(f"{name}: {getattr(p, name)} is too small, the least is {least}{why}.")
    for way in p.ways:
        if way not in WAYS:
            raise AuditError(f"ways: {way!r} is not one of {', '.join(WAYS)}.")
        if WAYS[way] and not getattr(p, WAYS[way]):
            raise AuditError(f'{WAYS[way]}: name a pipeline to {way} pictures with, or take "{way}" out of ways.')
    for gate in p.gates:
        if gate not in GATES:
            raise AuditError(f"gates: {gate!r} is not one of {', '.join(GATES)}.")
        if gate != "visual" and not (p.repeats or p.paraphraser):
            raise AuditError(
                f"repeats: 0 leaves the gate {gate} nothing to go by; raise it, or take {gate} out of gates."
            )
    for name in filter(None, WAYS.values()):
        if getattr(p, name):
            specs.parse_pipeline(getattr(p, name))
    for name, allowed in CHOICES.items():
        if getattr(p, name) not in allowed:
            raise AuditError(f"{name}: {getattr(p, name)!r} is not one of {', '.join(allowed)}.")
    checks = [
        (
            re.fullmatch(r"\w[\w.-]*", p.run_name),
            f"run_name: {p.run_name!r} becomes a folder's name; use letters, digits, '.', '-' and '_' only.",
        ),
        (
            re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", p.device),
            f"device: {p.device!r} is not one of auto, cpu, mps, cuda, cuda:N.",
        ),
        (
            p.engine != "ray" or p.device in ("auto", "cpu", "cuda"),
            f"device: under engine: ray each worker has a GPU of its own, so {p.device} cannot be had; write auto.",
        ),
        (
            all([p.images, p.auditor, p.target, *p.references]),
            "images, auditor, target and each of references must name something; one of them is empty.",
        ),
        (p.references, "references: the list is empty; without references there is no consensus to depart from."),
        (
            len(set(p.references)) == len(p.references),
            "references: one model is there twice and would vote twice; keep one.",
        ),
        (p.target not in p.references, f"references: {p.target} is the target and would vote for its own answer."),
        (
            len(set(answering := [specs.parse(spec).name for spec in (p.target, *p.references)])) == len(answering),
            f"target and references: two of {', '.join(answering)} have one name, by which records tell them apart; "
            "rename a folder.",
        ),
        (
            specs.parse(p.peer).name != specs.parse(p.target).name,
            f"peer: {p.peer} has the target's name, by which records tell them apart; rename a folder.",
        ),
        (
            p.asks != "source" or p.ways == ["question"],
            "asks: the images' own questions are no wishes for pictures; write ways: [question] with asks: source.",
        ),
        (p.ways, "ways: the list is empty; write question, regenerate, edit, or some of them."),
        (0 < p.edit_region <= 1, f"edit_region: {p.edit_region} is not in (0, 1], a share of the picture."),
        (0 <= p.edit_rest <= 1, f"edit_rest: {p.edit_rest} is not in [0, 1], a similarity."),
        (0 <= p.picture_gain < 1, f"picture_gain: {p.picture_gain} is not in [0, 1), the cosine to be above."),
        (
            specs.parse(p.picture_judge).engine == "transformers"
            and "bits" not in specs.parse(p.picture_judge).options,
            f'picture_judge: "{p.picture_judge}" is to be a folder or a hub id, without ?bits.',
        ),
        (0 < p.quorum <= 1, f"quorum: {p.quorum} is not in (0, 1], the share of the references that must agree."),
        (0 < p.grpo_quorum <= 1, f"grpo_quorum: {p.grpo_quorum} is not in (0, 1], as for quorum."),
        (
            p.grpo_temperature > 0,
            f"grpo_temperature: {p.grpo_temperature} makes all questions of a group equal, which teaches nothing; "
            "use more.",
        ),
        (p.grpo_warmup < 1, f"grpo_warmup: {p.grpo_warmup} is the share of the steps that warm up; write less than 1."),
        (
            p.grpo_last_learning_rate <= p.grpo_learning_rate,
            f"grpo_last_learning_rate: {p.grpo_last_learning_rate} is above grpo_learning_rate, from which it falls.",
        ),
        (
            not p.grpo_micro_batch or (p.grpo_images * p.group_size) % p.grpo_micro_batch == 0,
            f"grpo_micro_batch: {p.grpo_micro_batch} does not divide a step's {p.grpo_images * p.group_size} questions "
            "(grpo_images x group_size).",
        ),
        (
            not p.rectify_micro_batch or p.rectify_batch % p.rectify_micro_batch == 0,
            f"rectify_micro_batch: {p.rectify_micro_batch} does not divide rectify_batch ({p.rectify_batch}).",
        ),
        (
            p.run_name not in p.earlier and len(set(p.earlier)) == len(p.earlier),
            f"earlier: {', '.join(p.earlier)} has this run itself, or one of them twice; name other runs, each once.",
        ),
        (
            p.route == "unlabeled" or not p.rectify_pairs,
            "rectify_pairs: on the labeled route each example has its one sample; write 0, or route: unlabeled.",
        ),
        (p.grpo_learning_rate > 0, f"grpo_learning_rate: {p.grpo_learning_rate} trains nothing; write more than 0."),
        (
            p.rectify_learning_rate > 0,
            f"rectify_learning_rate: {p.rectify_learning_rate} trains nothing; write more than 0.",
        ),
        (
            p.grpo_images <= p.train_images,
            f"train_images: {p.train_images} are fewer than the grpo_images {p.grpo_images} of one step, so GRPO would "
            "train zero steps; raise train_images or lower grpo_images.",
        ),
        (
            p.grpo_checkpoints <= p.grpo_steps,
            f"grpo_checkpoints: {p.grpo_checkpoints} cannot be kept from {p.grpo_steps} grpo_steps; keep fewer.",
        ),
    ]
    for holds, sentence in checks:
        if not holds:
            raise AuditError(sentence)


def _injected(names: Mapping) -> set[str]:
    """The names papermill set: those assigned in cells that begin with its comment, as far as this kernel ran them."""
    cells = [source for source in names.get("In", []) if source.startswith("# Parameters\n")]
    statements = [statement for source in cells for statement in ast.parse(source).body]
    return {target.id for line in statements if isinstance(line, ast.Assign) for target in line.targets}
