"""What any model does, whatever runs it: write to images and prompts, in batches, and answer each question once."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from PIL import Image

from auditkit.models.batching import in_batches
from auditkit.models.offload import at_work
from auditkit.runs.progress import Progress


class WrittenText(str):
    """What a model wrote, and what its row in answers.jsonl says beside it.

    `beside`: {"cut"?: True, where it ended by its limit and not by itself}; behind a server also {"tokens": [read,
    written], or None where the server does not count, "retries"?: n, "refused"?: True, "redacted"?: True where a key
    was taken out, "escaped"?: True where half characters became escapes}
    """

    beside: dict

    def __new__(cls, text: str, beside: dict):
        written = super().__new__(cls, text)
        written.beside = beside
        return written

    def __getnewargs__(self):  # what a copy in another process is made from
        return str(self), self.beside


class Writer(Protocol):
    """A model behind any engine: what `generate_texts`, `answer_questions` and `AnswerBook` need of it."""

    name: str
    batch_size: int

    def write(
        self,
        images: Sequence[Image.Image | None],
        prompts: Sequence[str],
        max_new_tokens: int,
        temperature: float = 0.0,
    ) -> list[str]: ...


def generate_texts(
    vlm: Writer,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int | None = None,
) -> list[str]:
    """What the model writes to each of n (image, prompt) pairs, in their order, stripped.

    Temperature 0 is greedy; any other samples from the whole distribution, reproducibly when a seed is given; torch's
    own random state then stays as it was.
    """
    if len(images) != len(prompts):
        raise ValueError(f"generate: {len(images)} images for {len(prompts)} prompts")
    texts = [""] * len(prompts)

    def write(rows: list[int]) -> list[str]:
        return vlm.write([images[i] for i in rows], [prompts[i] for i in rows], max_new_tokens, temperature)

    line = Progress(f"texts of {vlm.name}", len(prompts))
    with at_work(vlm), line, torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        for rows, written in in_batches(vlm, prompts, write, together=[id(image) for image in images]):
            for i, text in zip(rows, written, strict=True):
                texts[i] = text
            line.add(len(rows))
    return texts


def answer_questions(
    vlm: Writer, images: Sequence[Image.Image], questions: Sequence[str], max_new_tokens: int = 8
) -> list[str]:
    """The model's greedy answers to n questions on n images; a question met again on the same image is asked once."""
    places: dict[tuple[int, str], int] = {}
    for i, (image, question) in enumerate(zip(images, questions, strict=True)):
        places.setdefault((id(image), question), i)
    first = list(places.values())
    said = generate_texts(vlm, [images[i] for i in first], [questions[i] for i in first], max_new_tokens)
    known = dict(zip(places, said, strict=True))
    return [known[id(image), question] for image, question in zip(images, questions, strict=True)]


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """A model that only reads and writes while this lasts: no dropout, and a cache also where, in training, activations
    are computed again on the way back (which then throws the cache away).
    """
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no advice from transformers; what matters is raised."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
