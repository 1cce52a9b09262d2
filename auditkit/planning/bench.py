"""How fast this machine is with the paper's models, and whether the plan of their memory is true. No weights needed.

Models have their published configurations and random weights (random_models.py), so nothing is downloaded. What is
timed is the kit itself: `generate_texts` for answers, `grpo.train_auditor` for steps of TRL's trainer, `run_audit`
for an audit. Two things differ from a real run, and neither makes it faster:

1) a model with random weights hardly ever ends a text, so every question and answer is as long as it may be;
2) what the auditor writes is no question, so for as long as the benchmark lasts any text counts as one and is asked.

Beside each time stands its floor: floating-point operations over the product of two matrices measured on this device,
plus bytes over its measured bandwidth (memory.py), with nothing overlapping. Beside each peak of memory stands what
`auditkit plan` predicts. Peaks are those of torch's allocator and are left out on a CPU, which keeps no such account.
"""

import contextlib
import copy
import platform
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch.utils.benchmark import Timer

from auditkit import specs
from auditkit.audit import batches
from auditkit.audit.loop import run_audit
from auditkit.auditor import grpo, rewards, write
from auditkit.auditor.write import auditor_prompt
from auditkit.data.source import Picture
from auditkit.errors import AuditError
from auditkit.models import by_image, downloads, processors
from auditkit.models.answers import AnswerBook
from auditkit.models.base import generate_texts, quiet
from auditkit.models.load import load_model
from auditkit.models.transformers import VLM
from auditkit.params import Params, load_params
from auditkit.planning import memory, sizes
from auditkit.planning.placement import TEMPLATE, PlacedModel, memory_needs, placed_models
from auditkit.planning.plan import this_machine
from auditkit.planning.random_models import RANDOM_MODELS, build_random_model
from auditkit.runs.files import write_json
from auditkit.runs.temporary import temporary_folder
from auditkit.text import text_table

AUDITOR, TARGET, REFERENCE = "gemma3-4b", "paligemma2-3b", "paligemma2-10b"  # of the whole step
BENCH_FILE = "params/paligemma2_3b.yaml"  # whose batches are timed
TOY = dict(grpo_images=2, group_size=2, grpo_micro_batch=2, batch_size=4, max_question_tokens=8, max_answer_tokens=4)
QUESTIONS = 8  # about a picture
BATCHES, STEPS = 3, 3  # of answers timed after one to warm up; GRPO steps, the first of which is not counted
PARTS = ("generation", "plausibility", "answers", "judge", "loss", "backward", "rest")


def run_bench(names: Sequence[str], tiny: bool = False) -> dict:
    """Measure everything and return it, ready for JSON.

    Args:
        names: whose answers are timed; names of RANDOM_MODELS, or specs (a miniature, a folder), which are loaded.
        tiny: build the same families at toy size, to see the benchmark work on a CPU.

    Raises AuditError for an unknown model.
    """
    for name in names:  # before the first minutes are spent
        if name not in RANDOM_MODELS:
            downloads.resolve(specs.parse(name).place)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not tiny and (large := [name for name in names if name in RANDOM_MODELS]):
        raise AuditError(f"no GPU is here: {large[0]} takes one; --tiny shows the benchmark at toy size on a CPU.")
    p = load_params(BENCH_FILE, memory="together", same="text", min_token_probability=0.0, **(TOY if tiny else {}))
    found: dict = {"device": device_name(device), "cuda": device == "cuda", "tiny": tiny, "torch": torch.__version__}
    found |= {"peaks": peaks(device), "answers": {}}
    print(f"on {found['device']}, torch {torch.__version__}" + (", models of toy size" if tiny else ""), flush=True)
    for name in names:
        print(f"answers of {name} ...", flush=True)
        model = (
            build_random_model(name, device, p.batch_size, tiny)
            if name in RANDOM_MODELS
            else load_model(name, batch_size=p.batch_size)
        )
        assert isinstance(model, VLM)
        key = sizes.kind(RANDOM_MODELS.get(name, name))
        found["answers"][key] = answers(model, p, found["peaks"])
        del model
        free()
    if any(name in RANDOM_MODELS for name in names):
        print(f"an audit and {STEPS} GRPO steps of {AUDITOR}, {TARGET} and {REFERENCE} ...", flush=True)
        try:
            found |= whole(device, tiny, p, found["peaks"])
        except torch.OutOfMemoryError as error:  # what has been measured is kept
            found["not"] = f"out of memory although the plan has it fit ({str(error).splitlines()[0]})"
    return found


def peaks(device: str) -> dict[str, float]:
    """What this device can do at best: {"flops": operations a second of a product, "bytes": bytes a second moved}."""
    dtype, n, mega = (torch.bfloat16, 8192, 1024) if device == "cuda" else (torch.float32, 1024, 64)
    a, b = (torch.rand(n, n, device=device).to(dtype) for _ in range(2))
    product = _timer(device, "a @ b", {"a": a, "b": b}).blocked_autorange(min_run_time=0.5).median
    source = torch.zeros(mega * 2**20, dtype=torch.uint8, device=device)
    move = _timer(device, "t.copy_(s)", {"t": torch.empty_like(source), "s": source})
    return {"flops": 2 * n**3 / product, "bytes": 2 * source.numel() / move.blocked_autorange(min_run_time=0.5).median}


def _timer(device: str, statement: str, values: dict) -> Timer:
    if device == "cpu":  # this process's own seconds, whatever else the machine does meanwhile
        return Timer(statement, globals=values, timer=time.process_time)
    return Timer(statement, globals=values)


def answers(model: VLM, p: Params, best: dict) -> dict:
    """Time batches of answers, after one that is not counted.

    Returns {"rows", "new": tokens written, "per_second", "seconds": of a batch, "preparing": of these, spent on the CPU
    on making tensors of pictures and words, "floor": s, and on a GPU "peak", "predicted": bytes}.
    """
    rows = BATCHES * model.batch_size
    pictures, questions = noise_pictures(rows, 1), made_up_questions(rows)
    images = [picture.image for picture in pictures]
    generate_texts(model, images[: model.batch_size], questions[: model.batch_size], p.max_answer_tokens)
    n = model.batch_size  # which may have been halved
    clock = Clock(model.model.device.type)
    with clock.timing(processors, "batch", "preparing"), _peak(model.model.device.type) as peak:
        began = clock.now()
        generate_texts(model, images, questions, p.max_answer_tokens)
        seconds = clock.now() - began
    size, e = size_of(model)
    prompt = size.image_tokens + len(questions[0].split()) + TEMPLATE
    floor = _floor(best, size, e, n, prompt, p.max_answer_tokens)
    planned = memory.weights(size, e) + memory.writing(size, e, n, prompt, p.max_answer_tokens)
    found = {"rows": n, "new": p.max_answer_tokens, "per_second": rows / seconds, "seconds": seconds * n / rows}
    found |= {"preparing": clock.spent["preparing"] * n / rows, "floor": floor}
    found |= {"peak": peak["bytes"], "predicted": planned} if peak else {}
    return found | {"by_image": by_image_answers(model, p, best)}


def by_image_answers(model: VLM, p: Params, best: dict) -> dict:
    """The same with QUESTIONS questions about each picture, shared and each row whole.

    Returns {"questions", "why": rows are read whole, or "", "shared", "whole": {"per_second", "peak"? bytes}, "floor":
    seconds of a batch}.
    """
    n, rows = min(QUESTIONS, model.batch_size), BATCHES * model.batch_size
    pictures, questions = noise_pictures(-(-rows // n), 3), made_up_questions(rows)
    images = [pictures[i // n].image for i in range(rows)]
    clock = Clock(model.model.device.type)
    found: dict = {"questions": n, "why": by_image.why_unshared(model, 0)}
    for how, whether in (("shared", contextlib.nullcontext), ("whole", whole_rows)):
        with whether():
            generate_texts(model, images[: model.batch_size], questions[: model.batch_size], p.max_answer_tokens)
            with _peak(model.model.device.type) as peak:
                began = clock.now()
                generate_texts(model, images, questions, p.max_answer_tokens)
                found[how] = {"per_second": rows / (clock.now() - began)}
            found[how] |= {"peak": peak["bytes"]} if peak else {}
    size, e = size_of(model)
    prompt = size.image_tokens + len(questions[0].split()) + TEMPLATE
    floor = _floor(best, size, e, model.batch_size, prompt, p.max_answer_tokens, n, size.image_tokens)
    return found | {"floor": floor}


def whole(device: str, tiny: bool, p: Params, best: dict) -> dict:
    """One audit batch and whole GRPO steps with auditor, target and a 10B reference at once: {"audit", "step"}.

    A step has as many pictures as the plan says will fit; {"not": why} where not even a few do.
    """
    cast = {name: RANDOM_MODELS[name] for name in (AUDITOR, TARGET, REFERENCE)}
    p = load_params(BENCH_FILE, **{**vars(p), "auditor": cast[AUDITOR], "target": cast[TARGET], "peer": "",
                             "references": [cast[REFERENCE]], "grpo_steps": STEPS, "grpo_checkpoints": 1})  # fmt: skip
    if device == "cuda" and not tiny:
        fits = fitted(p, here := this_machine(None, 1).limit)
        if fits is None:
            return {
                "not": f"even a step of few questions does not fit the {here / 1e9:.0f} GB that can be planned with"
            }
        p = fits
    built = {name: build_random_model(name, device, p.batch_size, tiny) for name in cast}
    aud, target, reference = built.values()
    found: dict = {}
    with temporary_folder("bench-") as folder, _any_text_is_a_question():
        pictures = noise_pictures(max(p.grpo_images, p.batch_size), 2)
        some, clock = pictures[: p.batch_size], Clock(device)
        with _peak(device) as peak:
            began = clock.now()
            there = [lambda model=model: model for model in (aud, target, reference)]
            counts = {"untrained": len(some)}
            run_audit({"untrained": there[0]}, there[1], there[2:], some, p, Path(folder, "audit"), counts)
            found["audit"] = {"rows": len(some), "seconds": clock.now() - began}
        planned = _planned(p, _as_planned(p, built))
        if peak:
            found["audit"] |= {"peak": peak["bytes"], "predicted": planned["05_audit"]}
        with _peak(device) as peak:
            spent = step(aud, target, reference, pictures[: p.grpo_images], p, Path(folder, "grpo"), clock)
        rows = p.grpo_images * p.group_size
        found["step"] = {"auditor": sizes.kind(cast[AUDITOR]), "target": sizes.kind(cast[TARGET])}
        found["step"] |= {"references": [sizes.kind(cast[REFERENCE])], "rows": rows, "seconds": spent}
        found["step"]["floors"] = step_floors(best, aud, [target, reference], p)
        if peak:
            found["step"] |= {"peak": peak["bytes"], "predicted": planned["04_auditor"]}
        built.clear()  # the trained auditor has an adapter, so it is built anew
        del aud, there
        free()
        aud = build_random_model(AUDITOR, device, p.batch_size, tiny)
        try:
            with _peak(device) as peak, whole_rows():
                found["step"]["whole_rows"] = step(
                    aud, target, reference, pictures[: p.grpo_images], p, Path(folder, "whole"), clock
                )
            found["step"] |= {"peak_whole_rows": peak["bytes"]} if peak else {}
        except torch.OutOfMemoryError as error:  # what has been measured is kept
            found["not"] = f"with each row whole, out of memory ({str(error).splitlines()[0]})"
    return found


def fitted(p: Params, limit: float) -> Params | None:
    """The same with as many pictures a step as fit into `limit` bytes, all models together; None if not even two do."""
    for images in (n for n in (64, 32, 16, 8, 4, 2) if n <= p.grpo_images):
        q = replace(p, grpo_images=images)
        need = _planned(q, placed_models(q, True))
        if max(need["04_auditor"], need["05_audit"]) <= limit:
            return q
    return None


def step(
    aud: VLM, target: VLM, reference: VLM, pictures: Sequence[Picture], p: Params, out: Path, clock: "Clock"
) -> dict:
    """Seconds of each part of a GRPO step, the mean over all but the first: {part: s, ..., "whole": s}.

    `grpo.train_auditor` runs as it is; the functions it calls are timed around, and what answers at the answer book.
    """
    ends: list[tuple[float, dict]] = []

    def ended(_row) -> None:
        ends.append((clock.now(), dict(clock.spent)))

    clock.spent.clear()
    timed = contextlib.ExitStack()
    for owner, name, part in (
        (aud.model, "generate", "generation"),
        (rewards, "rarest_token", "plausibility"),
        (AnswerBook, "ask", "answers"),
        (rewards, "vote_all", "judge"),
        (grpo.AuditorTrainer, "_prepare_inputs", "inputs"),
        (grpo.AuditorTrainer, "compute_loss", "loss"),
        (grpo.AuditorTrainer, "training_step", "training"),
    ):
        timed.enter_context(clock.timing(owner, name, part))
    with timed, quiet():
        grpo.train_auditor(aud, target, [reference], pictures, p, out, on_step=ended)
    (first, before), (last, after) = ends[0], ends[-1]
    n = len(ends) - 1
    each = {part: (after.get(part, 0.0) - before.get(part, 0.0)) / n for part in after}
    spent = {part: each.get(part, 0.0) for part in PARTS}
    spent["backward"] = each["training"] - each["inputs"] - each["loss"]
    whole = (last - first) / n
    spent["rest"] = whole - sum(spent[part] for part in PARTS if part != "rest")
    return spent | {"whole": whole}


class Clock:
    """Seconds spent in functions, by part; on a GPU each is waited for."""

    def __init__(self, device: str):
        self.device = device
        self.spent: dict[str, float] = defaultdict(float)

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def timing(self, owner: object, name: str, part: str) -> contextlib.AbstractContextManager:
        """Time every call of `owner.name` as `part` while the context lasts."""
        function = getattr(owner, name)

        def timed(*arguments, **named):
            began = self.now()
            try:
                return function(*arguments, **named)
            finally:
                self.spent[part] += self.now() - began

        return mock.patch.object(owner, name, timed)


def bench_table(found: dict) -> str:
    """The result as text."""
    best = found["peaks"]
    at_best = f"{best['flops'] / 1e12:.2f} TFLOP/s of a matrix product, {best['bytes'] / 1e9:.0f} GB/s moved"
    lines = [f"{found['device']}: {at_best}"]
    if found["tiny"]:
        lines.append("Models of toy size: these figures say that the benchmark works, and nothing of the real ones.")
    for name, row in found["answers"].items():
        lines += [_answers_line(name, row), _by_image_line(row["by_image"])]
    if "not" in found:
        lines.append(f"No whole step: {found['not']}.")
    if "audit" in found:
        row = found["audit"]
        lines.append(f"an audit of {row['rows']} probes: {row['seconds']:.2f} s{_memory(row)}")
    if "step" in found:
        row = found["step"]
        cast = f"auditor {row['auditor']}, target {row['target']}, reference {', '.join(row['references'])}"
        lines.append(f"a GRPO step of {row['rows']} questions ({cast}): {row['seconds']['whole']:.2f} s{_memory(row)}")
        floors = {part: f"{seconds:.3f}" for part, seconds in row["floors"].items()}
        whole = {part: f"{seconds:.3f}" for part, seconds in row.get("whole_rows", {}).items()}
        rows = [
            [f"    {part}", f"{row['seconds'][part]:.3f}", whole.get(part, ""), floors.get(part, "")]
            for part in (*PARTS, "whole")
        ]
        lines.append(text_table(["    part", "seconds", "each row whole", "floor"], rows))
    if not found["cuda"]:
        lines.append("Memory: not measured on a CPU.")
    return "\n".join(lines)


def write_bench(found: dict, path: Path) -> None:
    """Keep the result where `auditkit plan` looks for rates."""
    write_json(path, found)


def _answers_line(name: str, row: dict) -> str:
    return (
        f"{name}: {row['per_second']:.2f} answers a second, batches of {row['rows']} in {row['seconds']:.3f} s "
        f"({row['preparing']:.3f} s preparing pictures; floor of the rest {row['floor']:.3f} s){_memory(row)}"
    )


def _by_image_line(row: dict) -> str:
    shared, whole = row["shared"], row["whole"]
    line = f"    {row['questions']} questions a picture: {shared['per_second']:.2f} answers a second by image, "
    line += f"{whole['per_second']:.2f} with each row whole"
    line += f" (only the encoding is shared, for {row['why']})" if row["why"] else ""
    return line + (f"; peaks {shared['peak'] / 1e9:.1f} and {whole['peak'] / 1e9:.1f} GB" if "peak" in shared else "")


def _memory(row: dict) -> str:
    return f"; peak {row['peak'] / 1e9:.1f} GB, predicted {row['predicted'] / 1e9:.1f}" if "peak" in row else ""


def size_of(model: VLM) -> tuple[sizes.Size, int]:
    return sizes.count(model.model.config, {}, model.processor), model.model.dtype.itemsize


def _planned(p: Params, cast: list[PlacedModel]) -> dict[str, float]:
    """Bytes of each stage, all models together; the audit has the untrained auditor alone here."""
    untrained = copy.copy(p)
    vars(untrained)["grpo_checkpoints"] = 0  # which no file may say
    return {need.stage: need.together for need in memory_needs(untrained, cast)}


def _as_planned(p: Params, built: dict[str, VLM]) -> list[PlacedModel]:
    """The cast as the plan sees it, with the sizes of what was really built."""
    planned = placed_models(p, True)
    real = {specs.parse(RANDOM_MODELS[name]).name: size_of(model) for name, model in built.items()}
    return [PlacedModel(m.roles, m.text, m.spec, *real[m.spec.name]) for m in planned]


def _floor(
    best: dict, size: sizes.Size, e: int, rows: int, prompt: int, new: int, questions: int = 1, common: int = 0
) -> float:
    """Seconds in which a batch could be read and written at best, with so many `questions` about each picture."""
    operations = memory.read_operations(size, rows, prompt, questions, common, new)
    operations += memory.write_operations(size, rows, new)
    return operations / best["flops"] + memory.write_bytes(size, e, rows, prompt, new) / best["bytes"]


def step_floors(best: dict, aud: VLM, answering: Sequence[VLM], p: Params) -> dict[str, float]:
    """Seconds of the parts of a GRPO step at best; of what all questions about a picture begin with, once."""
    rows, new, each = p.grpo_images * p.group_size, p.max_question_tokens, p.group_size
    size, e = size_of(aud)
    prompt = size.image_tokens + len(auditor_prompt().split()) + TEMPLATE
    found = {"generation": _floor(best, size, e, rows, prompt, new, each, prompt), "answers": 0.0}
    found["plausibility"] = memory.read_operations(size, rows, prompt + new, each, prompt) / best["flops"]
    for model in answering:
        its, wide = size_of(model)
        n = min(rows, model.batch_size)
        asked = its.image_tokens + new + TEMPLATE
        floor = _floor(best, its, wide, n, asked, p.max_answer_tokens, min(each, n), its.image_tokens)
        found["answers"] += rows / n * floor
    learns = each if aud.model.device.type == "cpu" else 1  # elsewhere what was read is not kept, but read again
    learnt = memory.train_operations(size, rows, prompt + new, new, learns, prompt) / best["flops"]
    forward = memory.read_operations(size, rows, prompt + new, learns, prompt) / best["flops"]
    return found | {"loss": forward, "backward": learnt - forward}


@contextlib.contextmanager
def whole_rows() -> Iterator[None]:
    """While it lasts, rows about one image share nothing."""
    with contextlib.ExitStack() as patched:
        for name in ("begin", "with_features"):
            patched.enter_context(mock.patch.object(by_image, name, lambda *_, **__: None))
        patched.enter_context(mock.patch.object(by_image, "why_unshared", lambda *_: "it is switched off"))
        yield


@contextlib.contextmanager
def _any_text_is_a_question() -> Iterator[None]:
    """Random models write no questions, so whatever they write is put to the others."""
    with contextlib.ExitStack() as patched:
        for module in (write, rewards, batches):
            patched.enter_context(
                mock.patch.object(module, "parse_question", lambda text: " ".join(text.split()) or None)
            )
        yield


@contextlib.contextmanager
def _peak(device: str) -> Iterator[dict]:
    """Afterwards {"bytes": most that torch had allocated meanwhile} on a GPU, {} elsewhere."""
    found: dict = {}
    if device == "cuda":
        free()
        torch.cuda.reset_peak_memory_stats()
    yield found
    if device == "cuda":
        torch.cuda.synchronize()
        found["bytes"] = torch.cuda.max_memory_allocated()


def free() -> None:
    import gc

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def noise_pictures(n: int, seed: int) -> list[Picture]:
    """Pictures of noise, of the usual size of a photo in VQAv2."""
    noise = np.random.default_rng(seed)
    return [
        Picture(f"noise{i}", Image.fromarray(noise.integers(0, 256, (480, 640, 3), dtype=np.uint8))) for i in range(n)
    ]


def made_up_questions(n: int) -> list[str]:
    """Questions of ten words of the made-up tokenizer, all different."""
    words = random.Random(0)
    return [" ".join(f"w{words.randrange(10, 300)}" for _ in range(9)) + f" w{i + 10}" for i in range(n)]


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)})"
