"""Answers a second: by the kit, and by what a person would write without it, on the same models and questions.

Ways take turns, repeat after repeat, after a first one of each that is not counted, so that a machine that is now slow
and now fast is so to all of them. On a CPU torch has one thread and the process's own seconds are counted, not the
clock's. Beside each time stands its floor: operations over the speed of a matrix product on this device, plus bytes
over its bandwidth (bench.py).
"""

import contextlib
import importlib
import importlib.util
import os
import random
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from unittest import mock

import torch
from PIL import Image

from auditkit.data.source import Picture
from auditkit.miniature import grammar
from auditkit.miniature.boards import Boards, scene_of
from auditkit.models import downloads, processors
from auditkit.models.answers import AnswerBook
from auditkit.models.base import generate_texts, quiet
from auditkit.models.transformers import VLM
from auditkit.planning import bench, memory
from auditkit.planning.random_models import RANDOM_MODELS
from auditkit.repair.lmms_eval import INSTALL
from auditkit.runs.temporary import temporary_folder

RUNNERS = {"llava": ("llava_hf", "LlavaHf", 1), "gemma3": ("gemma3", "Gemma3", 32)}  # lmms-eval's: module, class, batch
VIDEO = ("decord", "av", "qwen_vl_utils")  # what lmms-eval's runners import to read videos, which none is here
TOKENS = 8  # of an answer
QUESTIONS = 8  # about an image
SAMPLE = 32  # prompts and answers whose length is looked at
PER_IMAGE = (1, 2, 4, 8, 32)
Spent = Mapping[str, Sequence[float]]  # way -> seconds of each repeat


def in_turns(ways: Mapping[str, Callable[[], object]], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of each way in each repeat, in turns; a way that returns a number says its seconds itself."""
    spent: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(repeats + 1):
        for way, work in ways.items():
            began = now(device)
            told = work()
            if repeat:
                spent[way].append(told if isinstance(told, float) else now(device) - began)
    return spent


def now(device: str) -> float:
    """A time in seconds: on a CPU of this process alone, which works in one thread, whatever else the machine does."""
    if device == "cpu":
        return time.process_time()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch works in one thread while it lasts."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def answers(model: VLM, spec: str, images: int, repeats: int, found: dict) -> list[dict]:
    """(a): QUESTIONS questions about each image by every way; one that is not there is told in found["skipped"]."""
    pictures, asked = material(model, images, QUESTIONS)
    shown = [picture.image for picture in pictures for _ in range(QUESTIONS)]
    ways: dict[str, Callable[[], object]] = {"the kit": lambda: _kit(model, shown, asked)}
    ways["a pipeline, one at a time"] = pipeline_loop(model, shown, asked)
    with contextlib.ExitStack() as until_then:
        try:
            runner, name = lmms_runner(model, spec, until_then)
            ways[name] = lambda: runner(shown, asked)
        except _Skip as why:
            found["skipped"].append(f"{model.name}: lmms-eval's runner: {why}")
            print(f"skipped: {found['skipped'][-1]}", flush=True)
        spent = in_turns(ways, repeats, model.model.device.type)
    floor = answers_floor(model, found["peaks"], shown, asked, QUESTIONS)
    return _rows(model, spent, "the kit", QUESTIONS, len(asked), floor)


def questions_an_image(model: VLM, images: int, repeats: int, peaks: dict) -> list[dict]:
    """(c): as many questions in all, but 1, 2, 4, 8 and 32 about an image, shared and each row whole."""
    rows = []
    total = images * QUESTIONS
    for n in PER_IMAGE:
        pictures, asked = material(model, max(1, total // n), n)
        shown = [picture.image for picture in pictures for _ in range(n)]

        def whole(shown=shown, asked=asked):
            with bench.whole_rows():
                _kit(model, shown, asked)

        ways = {"shared": lambda shown=shown, asked=asked: _kit(model, shown, asked), "whole": whole}
        spent = in_turns(ways, repeats, model.model.device.type)
        rows += _rows(model, spent, "shared", n, len(asked), answers_floor(model, peaks, shown, asked, n))
    return rows


def by_number(model: VLM, many: Sequence[int], repeats: int, peaks: dict) -> list[dict]:
    """(d): one question about each of so many images, through an answer book on disk, as an audit asks."""
    pictures, asked = material(model, max(many), 1)

    def work(n: int) -> None:
        with temporary_folder("bench-") as folder:
            AnswerBook(Path(folder, "answers.jsonl")).ask(model, pictures[:n], asked[:n], TOKENS)

    ways = {str(n): lambda n=n: work(n) for n in many}
    spent = in_turns(ways, repeats, model.model.device.type)
    shown = [picture.image for picture in pictures]
    rows, floor = [], answers_floor(model, peaks, shown, asked, 1) / len(asked)
    for n in many:
        seconds = spent[str(n)]
        row = {"model": model.name, "images": n, "seconds": seconds, "an_image": [s / n for s in seconds]}
        rows.append(row | {"floor": floor})
    return rows


def material(model: VLM, images: int, questions: int) -> tuple[list[Picture], list[str]]:
    """Pictures, and so many questions about each, the first picture's first: boards, or noise for made-up models."""
    if model.name in RANDOM_MODELS:
        return bench.noise_pictures(images, 1), bench.made_up_questions(images * questions)
    pictures = Boards().pictures("test", images, 0)
    asked = []
    for picture in pictures:
        drawn, some = random.Random(picture.key), {}
        while len(some) < questions:
            some[grammar.ask(scene_of(picture.key), drawn)] = True
        asked += list(some)
    return pictures, asked


def pipeline_loop(model: VLM, images: Sequence[Image.Image], questions: Sequence[str]) -> Callable[[], list[str]]:
    """transformers' own pipeline, one call a question, as its documentation has it; returns what it writes."""
    from transformers import pipeline

    asks = pipeline("image-text-to-text", model=model.model, processor=model.processor)

    def work() -> list[str]:
        how = {"max_new_tokens": TOKENS, "do_sample": False, "return_full_text": False}
        with quiet(), warnings.catch_warnings(action="ignore"):
            pairs = zip(images, questions, strict=True)
            return [asks(text=chat_about(*pair), **how)[0]["generated_text"] for pair in pairs]

    return work


def chat_about(image: Image.Image, question: str) -> list[dict]:
    """One turn of a chat, as transformers' pipeline takes it."""
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]


class _Skip(Exception):
    """Why a way cannot be measured."""


def lmms_runner(model: VLM, spec: str, until_then: contextlib.ExitStack) -> tuple[Callable, str]:
    """lmms-eval's own transformers runner of a model's family, (images, questions) -> answers, and its name.

    What it imports to read videos, and is not installed, is replaced by nothing: no video is here.
    """
    kind = model.model.config.model_type
    if kind not in RUNNERS:
        raise _Skip(f"there is none for {kind} here; there are those for {', '.join(RUNNERS)}")
    if spec in RANDOM_MODELS:
        raise _Skip("it loads weights from a folder or a hub, and these were made on the spot")
    module, name, batch = RUNNERS[kind]
    stubs = {video: _nothing(video) for video in VIDEO if not _installed(video)}
    until_then.enter_context(mock.patch.dict(sys.modules, stubs))
    try:
        import lmms_eval
        from lmms_eval.api.instance import Instance

        runner_class = getattr(importlib.import_module(f"lmms_eval.models.simple.{module}"), name)
    except ImportError as error:
        raise _Skip(f"lmms-eval is not here ({error}): {INSTALL}") from error
    device = str(model.model.device)
    with quiet(), warnings.catch_warnings(action="ignore"):
        runner = runner_class(pretrained=downloads.resolve(spec), device=device, device_map=device, batch_size=batch)

    def work(images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        runner.task_dict = {"bench": {"test": list(images)}}
        requests = [
            Instance(
                "generate_until",
                (question, {"max_new_tokens": TOKENS}, lambda image: [image], i, "bench", "test"),
                i,
                metadata={"task": "bench", "doc_id": i, "repeats": 1},
            )
            for i, question in enumerate(questions)
        ]
        with quiet(), warnings.catch_warnings(action="ignore"), silent():
            return runner.generate_until(requests)

    version = getattr(lmms_eval, "__version__", "0.7.3")
    return work, f"lmms-eval {version}, {module}, batches of {batch}"


def answers_floor(model: VLM, peaks: dict, images: Sequence, questions: Sequence[str], an_image: int) -> float:
    """Seconds in which all these questions could be read and answered at best, so many about each image; prompts and
    answers are as long as they really are, by some of them.
    """
    size, e = bench.size_of(model)
    n, some = len(questions), slice(None, None, max(1, len(questions) // SAMPLE))
    prompt = fmean(prompt_length(model, *pair) for pair in zip(images[some], questions[some], strict=True))
    new = written_length(model, _kit(model, images[some], questions[some]))
    operations = memory.read_operations(size, n, prompt, an_image, size.image_tokens)
    operations += memory.write_operations(size, n, new)
    rows = min(n, model.batch_size)
    moved = memory.write_bytes(size, e, rows, prompt, new) * n / rows
    return operations / peaks["flops"] + moved / peaks["bytes"]


def prompt_length(model: VLM, image: Image.Image, prompt: str) -> int:
    """Tokens that a model reads for a prompt about an image, the image's among them."""
    inputs = processors.batch(model, [image], [processors.chat(model, prompt)])
    return int(inputs["attention_mask"].sum())


def written_length(model: VLM, texts: Sequence[str]) -> float:
    """Tokens that a model writes for each of these texts, the end among them, in the mean."""
    return 1 + fmean(map(len, model.processor.tokenizer(list(texts), add_special_tokens=False)["input_ids"]))


def _kit(model: VLM, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
    with silent():
        return generate_texts(model, images, questions, TOKENS)


def _rows(model: VLM, spent: Spent, first: str, an_image: int, n: int, floor: float) -> list[dict]:
    """A row a way: {"model", "way", "questions": an image, "answers", "seconds", "ratio": to the first, "floor"}."""
    rows = []
    for way, seconds in spent.items():
        ratio = [own / other for own, other in zip(seconds, spent[first], strict=True)]
        row = {"model": model.name, "way": way, "questions": an_image, "answers": n, "seconds": seconds}
        rows.append(row | {"ratio": ratio, "floor": floor})
    return rows


def _installed(module: str) -> bool:
    return module in sys.modules or importlib.util.find_spec(module) is not None


def _nothing(module: str) -> types.ModuleType:
    """A module of which every name is None."""
    empty = types.ModuleType(module)
    empty.__dict__["__getattr__"] = lambda name: None
    empty.__spec__ = types.SimpleNamespace(name=module)  # type: ignore[assignment]  # whoever asks whether it is there
    return empty


@contextlib.contextmanager
def silent() -> Iterator[None]:
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
