"""Does a model do what an audit takes for granted? One function a question; `auditkit check MODEL` asks them all, or
those of one role (`--as`), and does in small what a run does with it.

Each function returns what it found, in words, or raises AuditError with one sentence. The tests ask the same functions
of a tiny model of each family, so what is said of a family here is said of its real members when they are checked.
"""

import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate.utils.memory import should_reduce_batch_size
from PIL import Image, ImageOps

from auditkit import specs
from auditkit.auditor.write import auditor_prompt, propose_questions
from auditkit.consensus.normalise import has_content
from auditkit.data.pictures import read_picture
from auditkit.data.source import Example, Picture
from auditkit.errors import AuditError
from auditkit.models import by_image, image_features, processors
from auditkit.models.base import Writer
from auditkit.models.device import dtype_in_words
from auditkit.models.load import load_model
from auditkit.models.lora import adapts
from auditkit.models.offload import at_work, free_memory
from auditkit.models.trainer_internals import attention_of
from auditkit.models.transformers import VLM, token_probabilities
from auditkit.params import Params
from auditkit.repair.finetune import train_repair, why_not_trainable
from auditkit.runs.temporary import temporary_folder
from auditkit.text import short_error

ROLES = ("target", "reference", "auditor")
QUESTION = "What is in this picture?"
WRITE = 32  # tokens written to measure speed


def check_model(
    spec: str,
    device: str = "auto",
    dtype: str = "auto",
    image: str | Path | None = None,
    question: str = QUESTION,
    role: str = "",
) -> Iterator[tuple[str, str, bool]]:
    """Load a model, put one question on one image to it, and say what was found: (what, found, whether it is right).

    Args:
        spec: any model's (specs.py).
        image: a picture's file; None takes one of the miniature's.
        role: of ROLES, what a model of this role does is done in small; without one, that of all roles.

    Whatever goes wrong with the loaded model is told as found and not right, not raised.

    Raises AuditError when the model or the picture cannot be loaded.
    """
    picture = _picture(image)
    began = time.perf_counter()
    try:
        model = load_model(spec, device=device, dtype=dtype)
    except AuditError:
        raise
    except Exception as error:
        yield "loaded", _reason(error), False
        return
    yield "loaded", f"{model.name} in {time.perf_counter() - began:.1f} s", True
    images, questions = mixed(picture, question)
    with at_work(model):
        if isinstance(model, VLM):
            yield from _told(described(model, spec, dtype))
            own = model.processor.chat_template != processors.PALIGEMMA
            yield "template", "its own chat template" if own else "none; PaliGemma's task prefix", True
            yield _asked("whole text", lambda: whole_text(model, picture, question))
            yield _asked("begins", lambda: begins_once(model, picture, question))
        yield _asked("answers", lambda: writing_speed(model, picture, question))
        yield _asked("in a batch", lambda: same_in_batches(model, images, questions))
        if isinstance(model, VLM):
            yield _asked("by image", lambda: sharing(model, picture, questions))
        yield _asked("content", lambda: says_something(model, images, questions))
        if isinstance(model, VLM):
            yield _asked("image and text", lambda: modalities(model, images, questions))
            if role != "reference":
                yield from trained(model, spec, device, dtype, images, questions, role)
            if model.model.device.type == "cuda":
                yield "peak memory", f"{torch.cuda.max_memory_allocated(model.model.device) / 1e9:.2f} GB", True


def trained(
    model: VLM, spec: str, device: str, dtype: str, images: Sequence, questions: Sequence[str], role: str
) -> Iterator[tuple[str, str, bool]]:
    """What a run does with a target, with an auditor, or with both: trained for a step, saved, and loaded again."""
    from auditkit.auditor.trial import trial_step  # TRL, which takes seconds

    p = Params(run_name="check", images="miniature", auditor=spec, target=spec, references=[spec])
    pictures = [Picture(f"check-{i}", image) for i, image in enumerate(images)]
    again = partial(load_model, spec, device=device, dtype=dtype)
    with temporary_folder("check-") as folder:
        adapters = []
        why_not = why_not_trainable(spec) if role != "auditor" else ""
        if why_not:
            yield "repair", why_not, True  # which an audit can do without
            if role == "target" or "bits" in specs.parse(spec).options:
                return
        yield _asked("adapters", lambda: adaptable(model))
        if role != "target":
            adapters.append(Path(folder, "auditor"))
            if role == "auditor":
                yield _asked("questions", lambda: writes_questions(model, pictures, p))
            yield _asked("scores", lambda: scored(model, images, questions))
            yield _asked("GRPO step", lambda: trial_step(model, pictures, p, out=adapters[-1]).found)
        if role != "auditor" and not why_not:
            adapters.append(Path(folder, "repair", "adapter"))
            yield _asked("repair step", lambda: repair_step(model, images, questions, p, adapters[-1].parent))
        for adapter in adapters:
            if adapter.is_dir():  # or it has been said why there is none
                yield _asked("saved, loaded", lambda adapter=adapter: same_when_loaded(model, adapter, again, images))


def writes_questions(model: VLM, pictures: Sequence[Picture], p: Params) -> str:
    """A question that an untrained auditor writes. Raises AuditError where what it writes is none."""
    probes = propose_questions(model, pictures, p.temperature, p.max_question_tokens, p.seed)
    written = [probe.question for probe in probes if probe.question]
    return f"{len(written)} of {len(probes)} texts are questions, such as “{written[0]}”"


def scored(model: VLM, images: Sequence, questions: Sequence[str]) -> str:
    """How probable n texts are to a model, which an auditor's own questions are held to."""
    found = token_probabilities(model, images, [auditor_prompt()] * len(images), questions)
    if not all(0 <= chance <= 1 for row in found for chance in row):
        raise AuditError(f'"{model.name}": gives a word a probability that is no number; ask with ?dtype=float32.')
    return f"the words of {len(found)} questions, the least likely at {min(map(min, found)):.1g}"


def repair_step(model: VLM, images: Sequence, questions: Sequence[str], p: Params, out: Path) -> str:
    """One step of a repair on n examples, which leaves an adapter in `out` and the model as it was."""
    examples = [Example(f"check-{i}", *pair, "yes") for i, pair in enumerate(zip(images, questions, strict=True))]
    small = replace(p, rectify_steps=1, rectify_batch=2, rectify_micro_batch=1)
    losses: list[float] = []
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of its next version
        train_repair(model, examples[:2], small, out, lambda step: losses.append(step["loss"]))
    if not all(map(math.isfinite, losses)):
        raise AuditError(f'"{model.name}": the loss of a repair is no number; train with ?dtype=float32 or bfloat16.')
    return f"learns an answer, loss {losses[0]:.2g}"


def same_when_loaded(model: VLM, adapter: Path, again: Callable[..., Writer], images: Sequence) -> str:
    """That a model expects the same with an adapter in place and with the same one loaded from its folder and merged.

    The model given is put into CPU memory for it, where two do not fit.
    """
    from peft import PeftModel

    questions = [QUESTION] * len(images)
    adapted = PeftModel.from_pretrained(model.model, str(adapter))
    wanted = logits(replace(model, model=adapted), images, questions).softmax(-1)
    model.model = adapted.unload()
    place = model.model.device
    model.model.to("cpu")
    free_memory()
    found = again(adapter=adapter)
    assert isinstance(found, VLM)
    off = (logits(found, images, questions).softmax(-1) - wanted).abs().max().item()
    del found
    free_memory()
    model.model.to(place)
    if not off <= image_features.ROUNDING[model.model.dtype]:
        raise AuditError(f'"{model.name}": loaded with its adapter, a token\'s probability is {off:.2g} off.')
    return f"the same with its adapter, within {off:.1g}"


def sharing(model: VLM, picture: Image.Image, questions: Sequence[str]) -> str:
    """What questions about one image share, and how much faster that is; the answers are the same.

    Raises AuditError where they are not.
    """
    why, asked = by_image.why_unshared(model, 0), list(questions) * 2
    if why and not image_features.takes_features(model):
        return f"each question with its image is read whole, for {why}"

    def timed(images: list[Image.Image]) -> tuple[list[str], float]:
        began = time.perf_counter()
        return model.write(images, asked, WRITE), time.perf_counter() - began

    timed([picture] * len(asked))  # what is tried and made ready at first
    whole, slow = timed([picture.copy() for _ in asked])  # none of them is the same object
    shared, fast = timed([picture] * len(asked))
    off = [why for why in model.tried.values() if why]
    if len(off) == len(model.tried):
        return (
            f"each question with its image is read whole, for {' and '.join([f'shared {why}' for why in off] or [why])}"
        )
    same = sum(a == b for a, b in zip(whole, shared, strict=True))
    if same < len(asked) and model.model.dtype == torch.float32:
        raise AuditError(
            f'"{model.name}": {len(asked) - same} of {len(asked)} answers differ when questions share an image.'
        )
    what = f"one's encoding alone, for {why or off[0]}," if why or off else "one"
    return f"{len(asked)} questions that share {what} are answered {slow / fast:.1f} times as fast, {same} the same"


def says_something(model: Writer, images: Sequence, questions: Sequence[str]) -> str:
    """That not all of n answers are empty or without any content."""
    said = model.write(list(images), list(questions), WRITE)
    n = sum(map(has_content, said))
    if not n:
        raise AuditError(f'"{model.name}": says nothing to any of {len(said)} questions, but {said[0]!r}.')
    return f"{n} of {len(said)} answers say something"


def mixed(picture: Image.Image, question: str) -> tuple[list[Image.Image], list[str]]:
    """A batch of different image sizes and question lengths, made from one picture and one question."""
    width, height = picture.size
    images = [
        picture,
        ImageOps.invert(picture).resize((width * 2, height)),
        ImageOps.mirror(picture).resize((width, max(8, height // 2))),
        picture.rotate(90).resize((max(8, width // 2), height)),
    ]
    return images, [question, "Why?", f"{question} Answer in one word, please.", "What colour is it?"]


def described(model: VLM, spec: str, dtype: str) -> Iterator[tuple[str, str, bool]]:
    """What was loaded: classes, number format and why, device, memory."""
    inner, options = model.model, specs.parse(spec).options
    yield "model", type(inner).__name__, True
    yield "processor", type(model.processor).__name__, True
    asked = options.get("dtype", dtype)
    kind = dtype_in_words(asked, inner.dtype, str(inner.device))
    if options.get("bits"):
        kind = f"{str(inner.dtype).removeprefix('torch.')}, weights in {options['bits']} bits: ?bits={options['bits']}"
    yield "dtype", kind, True
    yield "attention", str(attention_of(inner.config)), True
    place = str(inner.device)
    if place.startswith("cuda"):
        place += f", {torch.cuda.get_device_name(inner.device)}"
    yield "device", place, True
    held = sum(p.numel() * p.element_size() for p in inner.parameters())
    number = sum(p.numel() for p in inner.parameters())
    size = f"{held / 1e9:,.1f} GB" if held >= 1e9 else f"{held / 1e6:,.1f} MB"
    yield "memory", f"{size} for {number / 1e6:,.1f} M parameters", True


def whole_text(model: VLM, image: Image.Image | None, question: str) -> str:
    """All that the model is given, from its tokens back to text; a token that comes again and again is counted."""
    tokenizer, text = model.processor.tokenizer, processors.chat(model, question, image is not None)
    ids = processors.batch(model, [image], [text])["input_ids"][0].tolist()
    pieces, plain = [], []
    for token, run in itertools.groupby(ids):
        n = len(list(run))
        if n < 4:
            plain += [token] * n
        else:  # a picture's
            pieces += [tokenizer.decode(plain), f"{tokenizer.decode([token])}*{n}"]
            plain = []
    return repr("".join([*pieces, tokenizer.decode(plain)]))


def begins_once(model: VLM, image: Image.Image | None, question: str) -> str:
    """That the beginning-of-sequence token is given as often as the chat template or the tokenizer wants, not twice.

    A doubled one is no error to a model, it only answers worse; real cases come from tokenizing a chat's text with
    special tokens again.
    """
    tokenizer, text = model.processor.tokenizer, processors.chat(model, question, image is not None)
    if tokenizer.bos_token is None:
        return "without a BOS token: the tokenizer has none"
    ids = processors.batch(model, [image], [text])["input_ids"][0].tolist()
    found, written = ids.count(tokenizer.bos_token_id), text.count(tokenizer.bos_token)
    if found > max(1, written):
        raise AuditError(
            f'"{model.name}": its text has {tokenizer.bos_token} {found} times; leave it out of the chat template.'
        )
    where = "the chat template" if written else "the tokenizer or processor"
    return f"with {tokenizer.bos_token} once, from {where}" if found else f"without {tokenizer.bos_token}, as trained"


def writing_speed(model: Writer, image: Image.Image | None, question: str) -> str:
    """One answer, and how fast it was written, the reading of image and prompt included."""
    model.write([image], [question], 2)  # what is only made once is made now
    began = time.perf_counter()
    said = model.write([image], [question], WRITE)[0]
    seconds = time.perf_counter() - began
    cut = (
        f"; not at its end after {WRITE} tokens, so max_answer_tokens must be higher or the question ask for less"
        if getattr(said, "beside", {}).get("cut")
        else ""
    )
    if not isinstance(model, VLM):
        return f"{said!r} in {seconds:.2f} s{cut}"
    n = min(WRITE, 1 + len(model.processor.tokenizer(said, add_special_tokens=False)["input_ids"]))  # and the end
    return f"{said!r}: {n} tokens in {seconds:.2f} s, {n / seconds:.1f} a second, alone{cut}"


def same_in_batches(model: Writer, images: Sequence, questions: Sequence[str], max_new_tokens: int = 8) -> str:
    """That n different pairs are answered together as one by one, in any order, and the same each time.

    In half precision two tokens may be so close that the batch's rounding decides; such answers may differ, as long as
    no token's probability does.

    Raises AuditError when greedy answers change from one time to the next, or depend on the batch.
    """
    alone = [model.write([i], [q], max_new_tokens)[0] for i, q in zip(images, questions, strict=True)]
    together = model.write(images, questions, max_new_tokens)
    if model.write(images, questions, max_new_tokens) != together:
        raise AuditError(f'"{model.name}": the same batch is answered differently each time, though nothing is drawn.')
    turned = model.write(images[::-1], questions[::-1], max_new_tokens)[::-1]
    same = sum(a == b == c for a, b, c in zip(alone, together, turned, strict=True))
    words = f"{same} of {len(alone)} answers as one by one, in either order"
    if not isinstance(model, VLM):
        return words  # what an engine of its own makes of a batch cannot be seen from here
    off = drift(model, images, questions)
    if off > image_features.ROUNDING[model.model.dtype]:
        raise AuditError(
            f'"{model.name}": in a batch a token\'s probability is {off:.2g} off what it is alone, more than rounding; '
            "ask with ?batch_size=1."
        )
    if same < len(alone) and model.model.dtype == torch.float32:
        raise AuditError(f'"{model.name}": only {words}; ask with ?batch_size=1.')
    return f"{words}; probabilities within {off:.1g}"


def drift(model: VLM, images: Sequence, questions: Sequence[str]) -> float:
    """The largest difference of a first token's probability, in one batch and alone."""
    together = logits(model, images, questions).softmax(-1)
    alone = [logits(model, [i], [q]).softmax(-1) for i, q in zip(images, questions, strict=True)]
    return (together - torch.cat(alone)).abs().max().item()


@torch.inference_mode()
def logits(model: VLM, images: Sequence, questions: Sequence[str]) -> torch.Tensor:
    """What each of n pairs makes the model expect first: [n, vocabulary], float32, from one forward pass."""
    texts = [processors.chat(model, q, i is not None) for i, q in zip(images, questions, strict=True)]
    inputs = processors.batch(model, images, texts)
    if model.model.config.is_encoder_decoder:
        how = model.model.generation_config
        first = how.bos_token_id if how.decoder_start_token_id is None else how.decoder_start_token_id
        inputs["decoder_input_ids"] = torch.full_like(inputs["input_ids"][:, :1], first)
    return model.model(**inputs, logits_to_keep=1).logits[:, -1].float().cpu()


def modalities(model: VLM, images: Sequence, questions: Sequence[str]) -> str:
    """That another image changes what the model expects, and another question too.

    Raises AuditError when one of them is ignored.
    """
    base = logits(model, images[:1], questions[:1])
    moved = {}
    for what, pair in (("image", (images[1:2], questions[:1])), ("question", (images[:1], questions[1:2]))):
        moved[what] = (logits(model, *pair) - base).abs().max().item()
        if moved[what] <= 1e-5 * base.abs().max().item():
            raise AuditError(f'"{model.name}": another {what} changes nothing; is it a vision-language model at all?')
    return f"both matter: logits move by {moved['image']:.2g} and {moved['question']:.2g}"


def adaptable(model: VLM) -> str:
    """That there are text layers for LoRA, and that none of the vision tower is taken for one."""
    names = [name for name, _ in model.model.named_modules() if adapts(name)]
    if not names:
        raise AuditError(f'"{model.name}": no text layers found to put an adapter on; it can be asked, not trained.')
    if strays := [name for name in names if any(part in name for part in ("vision", "visual", "audio"))]:
        raise AuditError(f'"{model.name}": {strays[0]} would be trained as if it were text; please report this model.')
    return f"fit {len(names)} text layers, {names[0]} first"


def _asked(what: str, ask) -> tuple[str, str, bool]:
    try:
        return what, ask(), True
    except Exception as error:  # whatever it is, it is what was asked for: the reason why not
        return what, _reason(error), False


def _told(rows: Iterator[tuple[str, str, bool]]) -> Iterator[tuple[str, str, bool]]:
    try:
        yield from rows
    except Exception as error:
        yield "described", _reason(error), False


def _reason(error: Exception) -> str:
    if isinstance(error, AuditError):
        return str(error)
    if isinstance(error, RuntimeError) and should_reduce_batch_size(error):
        return "out of memory; try ?bits=4, ?max_pixels=... or a smaller picture"
    return f"{type(error).__name__}: {short_error(error)}"


def _picture(image: str | Path | None) -> Image.Image:
    if image is None:
        from auditkit.miniature.boards import Boards

        return Boards().pictures("train", 1, 0)[0].image.convert("RGB")
    try:
        return read_picture(Path(image), "it")
    except AuditError as error:
        why = str(error).removeprefix("images: ").rstrip(".")
        raise AuditError(f"--image {image}: not a picture that can be read ({why}).") from error
