"""What parameters cannot be: an error of pydantic as one sentence, and combinations that could not do what they say.

The types and ranges themselves stand beside the keys, in auditkit/params.py.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from auditkit import specs
from auditkit.errors import AuditError


class Else(NamedTuple):
    """What is said of a number out of its range, after the key and the number."""

    sentence: str


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
        return str(first["ctx"]["error"])
    if wrong == "finite_number":
        return f"{name}: {value} is not a number one can use; write a finite one."
    if wrong == "literal_error" and isinstance(first["input"], str):
        (allowed,) = [kind for kind in (field.annotation, *get_args(field.annotation)) if get_origin(kind) is Literal]
        return f"{name}: {first['input']!r} is not one of {', '.join(get_args(allowed))}."
    if wrong in ("greater_than_equal", "greater_than", "less_than_equal", "less_than"):
        own = [mark.sentence for mark in field.metadata if isinstance(mark, Else)]
        too_small = f"is too small, the least is {first['ctx'].get('ge', 0):g}"
        number = float(value) if field.annotation is float else value
        return f"{name}: {number} {own[0] if own else too_small}."
    return _wrong_type(name, value, field.annotation)


def _wrong_type(name: str, value: object, kind: Any) -> str:
    text = kind is str or get_origin(kind) is Literal
    if kind is float and isinstance(value, str) and re.fullmatch(r"[+-]?\d+\.?\d*[eE][+-]?\d+", value.strip()):
        mantissa, exponent = re.split("[eE]", value.strip())
        mantissa = mantissa if "." in mantissa else mantissa + ".0"
        exponent = exponent if exponent[0] in "+-" else "+" + exponent
        return f"{name}: YAML reads {value} as a string; write {mantissa}e{exponent}."
    if text and isinstance(value, (bool, int, float)):
        return f"{name}: YAML reads this as {value!r}, not as text; put it in quotes."
    wanted = "text" if text else {int: "a whole number", float: "a number"}.get(kind, "a list of texts, as in [a, b]")
    return f"{name}: expected {wanted}, got {value!r}."


def refuse_impossible(p: Any, ways: Mapping[str, str]) -> None:
    """Raise AuditError for the first pair of settings that could not do what they say.

    Args:
        p: the parameters, each of which is well by itself.
        ways: way of making a probe -> the key of the pipeline it needs, "" for none.
    """
    if p.same not in ("text", "embedding") and not re.search("[/:]", p.same):
        raise AuditError(f'same: "{p.same}" is none of text, embedding, or a model (a folder, a hub id, a server).')
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
