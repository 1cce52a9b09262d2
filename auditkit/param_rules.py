"""What parameters cannot be: an error of pydantic as one sentence, and combinations that could not do what they say.

The types and ranges themselves stand beside the keys, in auditkit/params.py.
"""

import importlib.util
import re
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from auditkit import specs
from auditkit.errors import AuditError
from auditkit.text import shortened


class Else(NamedTuple):
    """What is said of a number out of its range, after the key and the number."""

    sentence: str
    both: bool = True  # also of one that is too large, not only of one that is too small


def one_sentence(error: ValidationError, values: Mapping, fields: Mapping[str, FieldInfo]) -> str:
    """What is wrong with the first value that pydantic refuses, and what to write instead.

    Args:
        error: what pydantic says.
        values: the values it was given.
        fields: the keys of the schema.
    """
    first = error.errors(include_url=False)[0]
    name, wrong = str(first["loc"][0]), first["type"]
    value, field = values[name], fields[name]
    if wrong == "value_error":
        return f"{name}: {first['ctx']['error']}"
    if wrong == "finite_number":
        return f"{name}: {value} is not a number one can use; write a finite one."
    if wrong == "literal_error" and isinstance(first["input"], str):
        (allowed,) = [kind for kind in (field.annotation, *get_args(field.annotation)) if get_origin(kind) is Literal]
        return f"{name}: {shortened(first['input'])} is not one of {', '.join(get_args(allowed))}."
    if wrong in ("greater_than_equal", "greater_than", "less_than_equal", "less_than"):
        large = wrong.startswith("less")
        own = [mark.sentence for mark in field.metadata if isinstance(mark, Else) and (mark.both or not large)]
        bound = next(iter(first["ctx"].values()))
        bound = int(bound) if bound == int(bound) else bound
        said = f"is too large, the most is {bound}" if large else f"is too small, the least is {bound}"
        number = float(value) if field.annotation is float and abs(value) < 1e300 else value
        return f"{name}: {shortened(number)} {own[0] if own else said}."
    return _wrong_type(name, value, field.annotation)


def _wrong_type(name: str, value: object, kind: Any) -> str:
    text = kind is str or get_origin(kind) is Literal
    if kind is float and isinstance(value, str) and re.fullmatch(r"[+-]?\d+\.?\d*[eE][+-]?\d+", value.strip()):
        mantissa, exponent = re.split("[eE]", value.strip())
        mantissa = mantissa if "." in mantissa else mantissa + ".0"
        exponent = exponent if exponent[0] in "+-" else "+" + exponent
        return f"{name}: YAML reads {value[:80]} as a string; write {mantissa}e{exponent}."
    if text and isinstance(value, (bool, int, float, date)):
        shown = str(value) if isinstance(value, date) else shortened(value)
        return f"{name}: YAML reads this as {shown}, not as text; put it in quotes."
    wanted = "text" if text else {int: "a whole number", float: "a number"}.get(kind, "a list of texts, as in [a, b]")
    return f"{name}: expected {wanted}, got {shortened(value)}."


LONGEST_NAME = 100  # of a run; a folder's name has 255 bytes, and rounds and studies add to it
SHIPPED_RUN = "example"  # its report and summary lie in outputs/


def names_a_folder(name: str) -> bool:
    """Whether a text can be a run's name: a folder's, and nothing that leads elsewhere.

    >>> names_a_folder("demo_seed-1.b"), names_a_folder(".."), names_a_folder("a/b"), names_a_folder("")
    (True, False, False, False)
    """
    return re.fullmatch(r"\w[\w.-]*", name) is not None and len(name.encode()) <= LONGEST_NAME


def refuse_missing_packages(p: Any) -> None:
    """Raise AuditError for the first setting that needs a package which is not installed, at the start of a run.

    Args:
        p: the parameters.
    """
    for key, value, package, extra in _wanted_packages(p):
        if importlib.util.find_spec(package) is None:
            raise AuditError(f'{key}: {value} needs the extra `{extra}`: pip install "auditkit[{extra}]".')


def _wanted_packages(p: Any) -> Iterator[tuple[str, str, str, str]]:
    """(key, value, package, extra) of each setting that needs more than auditkit brings along."""
    if p.engine == "ray":
        yield "engine", "ray", "ray", "ray"
    if p.same == "embedding":
        yield "same", "embedding", "sentence_transformers", "embed"
    if p.types_by == "embedding":
        yield "types_by", "embedding", "sentence_transformers", "embed"
    if p.grpo_rollouts != "transformers":
        yield "grpo_rollouts", p.grpo_rollouts, "vllm", "vllm"
    models = {"target": [p.target], "peer": [p.peer], "references": p.references, "same": [p.same]}
    models |= {"paraphraser": [p.paraphraser], "namer": [p.namer]}
    for key, texts in models.items():
        for text in texts:
            spec = specs.parse(text)
            if spec.engine == "endpoint":
                yield key, spec.place, "openai", "endpoint"
            if spec.engine == "vllm":
                yield key, text, "vllm", "vllm"
            if "bits" in spec.options:
                yield key, text, "bitsandbytes", "quantize"


def refuse_impossible(p: Any, ways: Mapping[str, str]) -> None:
    """Raise AuditError for the first pair of settings that could not do what they say.

    Args:
        p: the parameters, each of which is well by itself.
        ways: way of making a probe -> the key of the pipeline it needs, "" for none.
    """
    if p.same not in ("text", "embedding") and not re.search("[/:]", p.same):
        raise AuditError(
            f'same: "{p.same[:80]}" is none of text, embedding, or a model (a folder, a hub id, a server).'
        )
    if specs.parse(p.auditor).engine != "transformers" or "bits" in specs.parse(p.auditor).options:
        raise AuditError(f'auditor: "{p.auditor}" cannot be trained; name a folder or a hub id, without ?bits.')
    for way in p.ways:
        if ways[way] and not getattr(p, ways[way]):
            raise AuditError(f'{ways[way]}: name a pipeline to {way} pictures with, or take "{way}" out of ways.')
    for gate in p.gates:
        if gate != "visual" and not (p.repeats or p.paraphraser):
            raise AuditError(
                f"repeats: 0 leaves the gate {gate} nothing to go by; raise it, or take {gate} out of gates."
            )
    checks = [
        (
            names_a_folder(p.run_name),
            f"run_name: {shortened(p.run_name)} becomes a folder's name; use letters, digits, '.', '-' and '_' only, "
            f"and at most {LONGEST_NAME} of them.",
        ),
        (
            p.run_name.casefold() != SHIPPED_RUN,
            f"run_name: {p.run_name} is the run that is shipped, outputs/{SHIPPED_RUN}, which a run would write over; "
            "take another name.",
        ),
        (
            all(map(names_a_folder, p.earlier)),
            f"earlier: {shortened(p.earlier)} are to be the run_names of other runs, folders of outputs/.",
        ),
        (
            re.fullmatch("auto|cpu|mps|cuda(:[0-9]{1,3})?", p.device),
            f"device: {shortened(p.device)} is not one of auto, cpu, mps, cuda, cuda:N.",
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
            "rename a folder, or write ?name=NAME behind one.",
        ),
        (
            specs.parse(p.peer).name != specs.parse(p.target).name,
            f"peer: {p.peer} has the target's name, by which records tell them apart; rename a folder, or "
            "write ?name=NAME behind one.",
        ),
        (
            p.asks != "source" or p.ways == ["question"],
            "asks: the images' own questions are no wishes for pictures; write ways: [question] with asks: source.",
        ),
        (
            p.search == "once" or (p.ways == ["question"] and p.route == "unlabeled"),
            f"search: {p.search} asks questions about fresh pictures; write ways: [question] and route: unlabeled, or "
            "search: once.",
        ),
        (
            p.search != "adaptive" or p.candidates > 1,
            f"candidates: {p.candidates} leaves search: adaptive nothing to choose among; raise it.",
        ),
        (
            p.search == "once" or p.engine == "local",
            f"search: {p.search} goes in small rounds, each of which waits for the last; write engine: local, or search: "
            "once.",
        ),
        (p.ways, "ways: the list is empty; write question, regenerate, edit, or some of them."),
        (
            specs.parse(p.picture_check).engine == "transformers"
            and "bits" not in specs.parse(p.picture_check).options,
            f'picture_check: "{p.picture_check}" is to be a folder or a hub id, without ?bits.',
        ),
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
