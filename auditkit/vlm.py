"""Models that look at a picture and write: load any Hugging Face one, ask it in batches, remember answers.

The miniature models, a hub id and a local folder go through the same lines: `AutoModelForImageTextToText`,
`AutoProcessor` and the model's own chat template. Weights are read from safetensors only, and no code that comes with a
model is ever run.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError

from auditkit import lines
from auditkit.errors import AuditError
from auditkit.images import Picture
from auditkit.params import model_name, root

WEIGHTS = Path(__file__).parent / "miniature" / "weights"


@dataclass
class VLM:
    """A model and its processor, under the name that records use for it."""

    name: str
    model: Any
    processor: Any
    batch_size: int = 128


def resolve(spec: str | Path) -> str:
    """Where a model is: the folder of a shipped one ("miniature:NAME") or of one's own, or a hub id, unchanged.

    A relative folder counts from the working folder, then from the project's.
    Raises AuditError when it can be none of these.
    """
    text = str(spec)
    if text.startswith("miniature:"):
        folder = WEIGHTS / text.removeprefix("miniature:")
        if not folder.is_dir():
            shipped = ", ".join(sorted(p.name for p in WEIGHTS.glob("*") if p.is_dir())) or "none"
            raise AuditError(f'"{text}": there is no such miniature model; shipped are: {shipped}.')
        return str(folder)
    for folder in (Path(text).expanduser(), root() / text):
        if folder.is_dir():
            return str(folder)
    if text.count("/") == 1 and not text.startswith((".", "/", "~", "outputs/")):
        return text
    raise AuditError(f'"{text}": no such model; write miniature:NAME, a folder or a hub id like google/gemma-3-4b-it.')


def load(
    spec: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 128,
    adapter: str | Path | None = None,
) -> VLM:
    """Load a model, its processor and, when given, a LoRA adapter, merged into it.

    A folder that itself is an adapter (of a checkpoint, say) is loaded on top of the model it names. "auto" takes cuda
    with bfloat16 where there is one, else mps, else cpu, with float32. The model's name is the last part of `spec`.

    Raises AuditError for a model that does not exist, reads no images, or lacks a processor, safetensors or weights.
    """
    place, name = resolve(spec), model_name(spec)
    adapters = [] if adapter is None else [Path(adapter)]
    if adapters:
        name = f"{name}+{adapters[0].name}"
    if (Path(place) / "adapter_config.json").is_file():
        place, adapters = _base_of(Path(place)), [Path(place), *adapters]
    device, kind = _device(device), _dtype(dtype, device)
    with quiet():
        processor = _processor(place, spec)
        model = _model(place, spec, kind, device)
        for folder in adapters:
            model = _adapted(model, folder)
    return VLM(name, model.eval(), processor, batch_size)


def generate(
    vlm: VLM,
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
    device = vlm.model.device
    with torch.random.fork_rng([device] if device.type == "cuda" else [], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        for rows in _batches(vlm, prompts):
            batch = [images[i] for i in rows], [prompts[i] for i in rows]
            for i, text in zip(rows, _write(vlm, *batch, max_new_tokens, temperature), strict=True):
                texts[i] = text
    return texts


def answer(vlm: VLM, images: Sequence[Image.Image], questions: Sequence[str], max_new_tokens: int = 8) -> list[str]:
    """The model's greedy answers to n questions on n images; a question met again on the same image is asked once."""
    places: dict[tuple[int, str], int] = {}
    for i, (image, question) in enumerate(zip(images, questions, strict=True)):
        places.setdefault((id(image), question), i)
    first = list(places.values())
    said = generate(vlm, [images[i] for i in first], [questions[i] for i in first], max_new_tokens)
    known = dict(zip(places, said, strict=True))
    return [known[id(image), question] for image, question in zip(images, questions, strict=True)]


@torch.inference_mode()
def probabilities(
    vlm: VLM, images: Sequence[Image.Image], prompts: Sequence[str], texts: Sequence[str]
) -> list[list[float]]:
    """How probable each token of n texts is to the model, as what it writes to n (image, prompt) pairs."""
    tokenizer, found = vlm.processor.tokenizer, [[] for _ in texts]
    lengths = [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []
    for rows in _batches(vlm, texts):
        inputs = _inputs(vlm, [images[i] for i in rows], [chat(vlm, prompts[i]) + texts[i] for i in rows])
        longest = max(lengths[i] for i in rows)  # the prompts' own tokens are never scored
        logits = vlm.model(**inputs, logits_to_keep=longest + 1).logits[:, :-1]  # [n, longest, vocabulary]
        chances = logits.float().softmax(-1).gather(-1, inputs["input_ids"][:, -longest:, None])[..., 0]
        for i, row in zip(rows, chances.tolist(), strict=True):
            found[i] = row[longest - lengths[i] :]
    return found


class AnswerBook:
    """Every answer a model gave, in a file of one object a line, so that nothing is asked twice, even after a kill.

    An answer is filed under the model's name, the picture's key and the question, as soon as its batch is done.
    `asked` counts the questions put to models by this object, `known` the answers in the book.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.asked = 0
        self._answers = {(r["model"], r["picture"], r["question"]): r["answer"] for r in lines.read(self.path)}

    @property
    def known(self) -> int:
        return len(self._answers)

    def ask(
        self, vlm: VLM, pictures: Sequence[Picture], questions: Sequence[str], max_new_tokens: int = 8
    ) -> list[str]:
        """The model's answers to n questions on n pictures; only what the book does not hold yet is asked."""
        keys = [(vlm.name, picture.key, question) for picture, question in zip(pictures, questions, strict=True)]
        unique = dict(zip(keys, pictures, strict=True))
        # Batches are cut before the known answers are taken out: a run that was killed then forms the same batches as
        # one that was not, and gets the same answers to the last bit.
        todo = list(unique)
        for rows in _batches(vlm, [question for _, _, question in todo]) if self._missing(todo) else ():
            if missing := self._missing([todo[i] for i in rows]):
                images = [unique[key].image for key in missing]
                said = _write(vlm, images, [question for _, _, question in missing], max_new_tokens, 0.0)
                new = dict(zip(missing, said, strict=True))
                lines.append(
                    self.path,
                    ({"model": m, "picture": p, "question": q, "answer": text} for (m, p, q), text in new.items()),
                )
                self._answers |= new
                self.asked += len(new)
        return [self._answers[key] for key in keys]

    def _missing(self, keys: list[tuple]) -> list[tuple]:
        return [key for key in keys if key not in self._answers]


def chat(vlm: VLM, prompt: str) -> str:
    """The whole text a model gets for a prompt about one image: its chat template's, or without one PaliGemma's prefix.

    Raises AuditError when the processor has no chat template and the model is no PaliGemma.
    """
    if getattr(vlm.processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        return vlm.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    if "paligemma" in type(vlm.processor).__name__.lower():
        return f"{vlm.processor.image_token}answer en {prompt}"
    raise AuditError(f'"{vlm.name}": its processor has no chat template; add a chat_template.jinja to its folder.')


def _batches(vlm: VLM, prompts: Sequence[str]) -> Iterator[list[int]]:
    """Row numbers in batches, longest prompts first: what does not fit in memory fails early, and little is padded."""
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    for start in range(0, len(order), vlm.batch_size):
        yield order[start : start + vlm.batch_size]


def _inputs(vlm: VLM, images: list, texts: list[str]):
    """One batch of images and whole texts as the model takes it, texts ending together at the right."""
    tokenizer = vlm.processor.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    inputs = vlm.processor(
        text=texts,
        images=[[image] for image in images],
        padding=True,
        padding_side="left",  # a decoder continues at the right end
        return_tensors="pt",
    ).to(vlm.model.device, dtype=vlm.model.dtype)
    inputs.pop("labels", None)  # PaliGemma's processor makes some even where there is nothing to learn
    return inputs


@torch.inference_mode()
def _write(vlm: VLM, images: list, prompts: list[str], max_new_tokens: int, temperature: float) -> list[str]:
    """One batch through processor, model and tokenizer."""
    model, tokenizer = vlm.model, vlm.processor.tokenizer
    inputs = _inputs(vlm, images, [chat(vlm, prompt) for prompt in prompts])
    how: dict = {"do_sample": False}
    if temperature:  # from the whole distribution, as GRPO samples, whatever the model's generation_config prefers
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    training = model.training
    model.eval()
    try:
        with quiet():
            out = model.generate(**inputs, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id, **how)
    finally:
        model.train(training)
    new = out[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def _device(device: str) -> str:
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def _dtype(dtype: str, device: str) -> torch.dtype:
    if dtype == "auto":
        return torch.bfloat16 if device.startswith("cuda") else torch.float32
    if not isinstance(kind := getattr(torch, dtype, None), torch.dtype):
        raise AuditError(f'dtype: "{dtype}" is not known; write auto, float32, bfloat16 or float16.')
    return kind


@contextlib.contextmanager
def quiet():
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


def _processor(place: str, spec: str | Path):
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise AuditError(f'"{spec}": no processor could be loaded from {place} ({_short(error)}).') from error
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise AuditError(f'"{spec}": {place} has no processor for images and text, only a {type(processor).__name__}.')
    return processor


def _model(place: str, spec: str | Path, dtype: torch.dtype, device: str):
    from transformers import AutoConfig, AutoModelForImageTextToText

    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise AuditError(f'"{spec}": no model configuration at {place} ({_short(error)}).') from error
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise AuditError(f'"{spec}": a {config.model_type} model does not read images; name a vision-language model.')
    try:
        model, info = AutoModelForImageTextToText.from_pretrained(
            place, dtype=dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise AuditError(f'"{spec}": its weights could not be loaded from {place} ({_short(error)}).') from error
    if missing := sorted(info["missing_keys"]):
        raise AuditError(f'"{spec}": {place} lacks {len(missing)} tensors of the model, {missing[0]} among them.')
    return model.to(device)


def _adapted(model, folder: Path):
    from peft import PeftModel

    if not (folder / "adapter_config.json").is_file():
        raise AuditError(f"{folder} is no adapter: it has no adapter_config.json.")
    try:
        return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (RuntimeError, ValueError) as error:
        raise AuditError(f"the adapter in {folder} does not fit the model ({_short(error)}).") from error


def _base_of(folder: Path) -> str:
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not base:
        raise AuditError(f"{folder}: its adapter_config.json names no base model; load that one with adapter=.")
    return resolve(base)


def _short(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
