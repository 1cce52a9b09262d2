"""Who takes part in an audit, and what each model's class, size and prompt are: for notebooks 00 and 01."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from PIL import Image

from auditkit.data.source import Example, Picture
from auditkit.models import processors
from auditkit.models.answers import AnswerBook
from auditkit.models.base import Writer, answer_questions
from auditkit.models.transformers import VLM


def model_roles(target: str, references: Sequence[str], peer: str, auditor: str) -> dict[str, str]:
    """Each role of an audit -> the text that names its model; without a peer there is no such role.

    >>> model_roles("t", ["a", "b"], "", "w")
    {'target': 't', 'reference 1': 'a', 'reference 2': 'b', 'auditor': 'w'}
    """
    roles = {"target": target, **({"peer": peer} if peer else {})}
    return roles | {f"reference {n}": spec for n, spec in enumerate(references, 1)} | {"auditor": auditor}


def deferred(load: Callable[[str], Writer], *specs: str) -> list[Callable[[], Writer]]:
    """What loads each of these models when it is called: an audit holds a model only while it is at work."""
    return [partial(load, spec) for spec in specs]


def load_roles(roles: Mapping[str, str], load: Callable[[str], Writer]) -> tuple[dict[str, Writer], list[dict]]:
    """The models of all roles, one after the other, and what there is to say about each.

    Args:
        load: a text that names a model -> the model (`model_loader(p)`).

    Raises AuditError for an auditor that cannot be trained for what its model is.

    Returns ({role: model}, rows {"key": role, "model": its name, "class", "parameters"?, "seconds": of loading}).
    """
    models, rows = {}, []
    for role, spec in roles.items():
        began = time.perf_counter()
        models[role] = load(spec)
        if role == "auditor" and isinstance(models[role], VLM):
            processors.refuse_encoder_decoder(models[role])
        seconds = round(time.perf_counter() - began, 2)
        about = {"key": role, "model": models[role].name, **class_and_size(models[role])}
        rows.append(about | {"seconds": seconds})
    return models, rows


def class_and_size(model: Writer) -> dict:
    """{"class", "parameters"}; of a model behind a server, or inside vLLM, the class alone."""
    if isinstance(model, VLM):
        return {"class": type(model.model).__name__, "parameters": model.model.num_parameters()}
    return {"class": type(model).__name__}


def whole_prompts(models: Mapping[str, Writer], question: str) -> dict[str, str]:
    """Role -> the whole text its model reads for a question; a server makes its own, so it is absent."""
    return {role: processors.chat(model, question) for role, model in models.items() if isinstance(model, VLM)}


def everyone(
    loaders: Sequence[Callable[[], Writer]], max_answer_tokens: int
) -> Callable[[Sequence[Image.Image], str], list[dict]]:
    """What puts a question about each of some images to target and references, which are loaded when it is first asked.

    Args:
        loaders: of the target, then of the references (`deferred`).

    Returns a function (images, question) -> [{"target": answer, "references": {name: answer}}].
    """
    models: list[Writer] = []

    def ask(images: Sequence[Image.Image], question: str) -> list[dict]:
        if not models:
            models.extend(load() for load in loaders)
        said = [answer_questions(model, images, [question] * len(images), max_answer_tokens) for model in models]
        names = [model.name for model in models[1:]]
        return [{"target": str(own), "references": dict(zip(names, map(str, rest), strict=True))}
                for own, *rest in zip(*said, strict=True)]  # fmt: skip

    return ask


def ask_all(
    models: Iterable[Writer], examples: Sequence[Example], book: AnswerBook, max_answer_tokens: int
) -> dict[str, list[str]]:
    """What every model says to the same examples: {model's name: answers}."""
    pictures = [Picture(example.key.split("/q")[0], example.held) for example in examples]
    questions = [example.question for example in examples]
    return {model.name: book.ask(model, pictures, questions, max_answer_tokens) for model in models}
