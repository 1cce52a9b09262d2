"""Models that look at a picture and write: load any Hugging Face one, ask it in batches, remember answers.

The miniature models, a hub id and a local folder go through the same lines: `AutoModelForImageTextToText`,
`AutoProcessor` and the model's own chat template. Weights are read from safetensors only, and code that comes with a
model is run only where its spec asks for it by name (`?trust_remote_code=yes`).

What asks a model needs three things of it: `name`, `batch_size`, and `write`, which answers one batch. `VLM` has them
here by transformers; models behind other engines (endpoint.py, vllm_engine.py) have the same three.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from safetensors import SafetensorError

from auditkit import lines, memory, places, specs
from auditkit.batches import in_batches
from auditkit.errors import AuditError, Unfinished
from auditkit.images import Picture
from auditkit.memory import Parked, at_work
from auditkit.params import root
from auditkit.processors import batch, chat, continued

WEIGHTS = Path(__file__).parent / "miniature" / "weights"


class Writer(Protocol):
    """A model behind any engine: what `generate`, `answer` and `AnswerBook` need of it."""

    name: str
    batch_size: int

    def write(
        self,
        images: Sequence[Image.Image | None],
        prompts: Sequence[str],
        max_new_tokens: int,
        temperature: float = 0.0,
    ) -> list[str]: ...


@dataclass
class VLM:
    """A model and its processor, under the name that records use for it."""

    name: str
    model: Any
    processor: Any
    batch_size: int = 128
    max_pixels: int | None = None  # larger pictures are shrunk to this many
    parked: Parked | None = field(default=None, repr=False)  # its weights' place while it does not write

    def write(
        self,
        images: Sequence[Image.Image | None],
        prompts: Sequence[str],
        max_new_tokens: int,
        temperature: float = 0.0,
    ) -> list[str]:
        """What the model writes to one batch of (image, prompt) pairs, stripped; an image of None is no image."""
        return _write(self, list(images), list(prompts), max_new_tokens, temperature)


def resolve(spec: str | Path, like: str = "google/gemma-3-4b-it") -> str:
    """Where a model is: the folder of a shipped one ("miniature:NAME") or of one's own, or a hub id or a server's
    address, unchanged.

    A relative folder counts from the working folder, then from the project's.
    Raises AuditError, with a hub id to write it `like`, when it can be none of these.
    """
    parsed = specs.parse(spec)
    text = parsed.place
    if parsed.engine == "endpoint":
        return text
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
    raise AuditError(f'"{text}": no such model; write miniature:NAME, a folder or a hub id like {like}.')


def load(
    spec: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 128,
    adapter: str | Path | None = None,
    turns: bool = False,
) -> Writer:
    """Load a model, its processor and, when given, a LoRA adapter, merged into it.

    A folder that itself is an adapter (of a checkpoint, say) is loaded on top of the model it names. "auto" takes cuda
    with bfloat16 where there is one, else mps, else cpu, with float32. The model's name is that of its spec (specs.py),
    whose own options go before the arguments given here.

    Args:
        adapter: goes on last, after those that the spec names. Where a training changed all weights, its folder holds
            a whole model, which takes the place of what comes before it.
        turns: keep the weights in CPU memory and bring them to the device only while the model writes; a quantized
            model is small and stays there.

    Raises AuditError for a model that does not exist, reads no images, or lacks a processor, safetensors or weights.
    """
    parsed = specs.parse(spec)
    own, name = parsed.options, parsed.name
    batch_size = own.get("batch_size", batch_size)
    if parsed.engine != "transformers" and adapter is not None:
        raise AuditError(f'"{spec}": an adapter needs the model\'s weights here; name a folder or a hub id.')
    if parsed.engine == "endpoint":
        from auditkit.endpoint import Endpoint

        return Endpoint.of(parsed)
    if parsed.engine == "vllm":
        from auditkit import vllm_engine

        return vllm_engine.load(parsed, batch_size)
    place = resolve(spec)
    adapters = [_folder(folder) for folder in (*parsed.adapters, *([] if adapter is None else [adapter]))]
    if adapter is not None:
        name = f"{name}+{Path(adapter).name}"
    if (Path(place) / "adapter_config.json").is_file():
        place, adapters = _base_of(Path(place)), [Path(place), *adapters]
    device = _device(own.get("device", device))
    kind = _dtype(own.get("dtype", dtype), device)
    bits = own.get("bits")
    if bits and adapters:
        raise AuditError(f'"{spec}": an adapter cannot be merged into weights of {bits} bits; leave ?bits out.')
    turns = turns and device != "cpu" and not bits
    with quiet():
        place, how = places.source(place, spec, own)
        places.config(place, spec, how)
        processor = places.processor(place, spec, how)
        whole = [i for i, folder in enumerate(adapters) if (folder / "config.json").is_file()]
        weights, adapters = (str(adapters[whole[-1]]), adapters[whole[-1] + 1 :]) if whole else (place, adapters)
        model = _model(weights, spec, kind, "cpu" if turns else device, own, how)
        for folder in adapters:
            model = _adapted(model, folder)
    parked = Parked(model, device) if turns else None
    return VLM(name, model.eval(), processor, batch_size, own.get("max_pixels"), parked)


def loader(p) -> Callable[..., Writer]:
    """`load` as a parameter file wants it: with its device, dtype, batch_size and memory."""
    return functools.partial(load, device=p.device, dtype=p.dtype, batch_size=p.batch_size, turns=p.memory == "turns")


def generate(
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

    with at_work(vlm), torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        for rows, written in in_batches(vlm, prompts, write):
            for i, text in zip(rows, written, strict=True):
                texts[i] = text
    return texts


def answer(vlm: Writer, images: Sequence[Image.Image], questions: Sequence[str], max_new_tokens: int = 8) -> list[str]:
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
    found: list[list[float]] = [[] for _ in texts]
    ids = vlm.processor.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []

    def score(rows: list[int]) -> list[list[float]]:
        endings = [torch.tensor(ids[i], dtype=torch.long) for i in rows]
        inputs = continued(vlm, [images[i] for i in rows], [chat(vlm, prompts[i]) for i in rows], endings)
        longest = max(map(len, endings))  # the prompts' own tokens are never scored
        del inputs["labels"]
        logits = vlm.model(**inputs, logits_to_keep=longest + 1).logits[:, :-1]  # [n, longest, vocabulary]
        chances = logits.float().softmax(-1).gather(-1, inputs["input_ids"][:, -longest:, None])[..., 0]
        return [row[longest - len(end) :] for end, row in zip(endings, chances.tolist(), strict=True)]

    with at_work(vlm):
        for rows, chances in in_batches(vlm, texts, score):
            for i, row in zip(rows, chances, strict=True):
                found[i] = row
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
        self, vlm: Writer, pictures: Sequence[Picture], questions: Sequence[str], max_new_tokens: int = 8
    ) -> list[str]:
        """The model's answers to n questions on n pictures; only what the book does not hold yet is asked."""
        keys = [(vlm.name, picture.key, question) for picture, question in zip(pictures, questions, strict=True)]
        unique = dict(zip(keys, pictures, strict=True))
        # Batches are cut before the known answers are taken out: a run that was killed then forms the same batches as
        # one that was not, and gets the same answers to the last bit.
        todo = list(unique)

        def write(rows: list[int]) -> None:
            missing = self._missing([todo[i] for i in rows])
            if not missing:
                return
            images = [unique[key].image for key in missing]
            try:
                self._keep(missing, vlm.write(images, [question for _, _, question in missing], max_new_tokens))
            except Unfinished as error:  # a request among others failed; what came back has been paid for
                self._keep(missing, error.answers)
                raise

        if self._missing(todo):
            with at_work(vlm):
                for _ in in_batches(vlm, [question for _, _, question in todo], write):
                    pass
        return [self._answers[key] for key in keys]

    def _keep(self, keys: list[tuple], answers: Sequence[str | None]) -> None:
        """File what was answered, with what an endpoint says beside it (endpoint.Written)."""
        new = {key: said for key, said in zip(keys, answers, strict=True) if said is not None}
        rows = (
            {"model": m, "picture": p, "question": q, "answer": str(said)} | getattr(said, "beside", {})
            for (m, p, q), said in new.items()
        )
        lines.append(self.path, rows)
        self._answers |= {key: str(said) for key, said in new.items()}
        self.asked += len(new)

    def _missing(self, keys: list[tuple]) -> list[tuple]:
        return [key for key in keys if key not in self._answers]


@torch.inference_mode()
def _write(vlm: VLM, images: list, prompts: list[str], max_new_tokens: int, temperature: float) -> list[str]:
    """One batch through processor, model and tokenizer."""
    model, tokenizer = vlm.model, vlm.processor.tokenizer
    texts = [chat(vlm, prompt, image is not None) for image, prompt in zip(images, prompts, strict=True)]
    inputs = batch(vlm, images, texts)
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
    """The device meant: under `accelerate launch` each process has the GPU of its own rank."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise AuditError(f"device: {device} is not here: torch {torch.__version__} sees no GPU; write auto or cpu.")
        if device == "cuda" and "LOCAL_RANK" in os.environ:
            return f"cuda:{os.environ['LOCAL_RANK']}"
        if device.partition(":")[2] and int(device.partition(":")[2]) >= torch.cuda.device_count():
            raise AuditError(f"device: there is no {device}; this machine has {torch.cuda.device_count()} GPU(s).")
    return device


def _dtype(dtype: str, device: str) -> torch.dtype:
    # a GPU older than Ampere only emulates bfloat16, slowly
    bfloat16 = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
    if dtype == "auto":
        return torch.float32 if not device.startswith("cuda") else torch.bfloat16 if bfloat16 else torch.float16
    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}.get(dtype)
    if kind is None:
        raise AuditError(f'dtype: "{dtype}" is not known; write auto, float32, bfloat16 or float16.')
    if kind == torch.bfloat16 and device.startswith("cuda") and not bfloat16:
        raise AuditError(f"dtype: {torch.cuda.get_device_name(device)} has no bfloat16; write float16 or auto.")
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


def _model(place: str, spec: str | Path, dtype: torch.dtype, device: str, own: dict, how: dict):
    from transformers import AutoModelForImageTextToText

    how = how | {"dtype": dtype, "attn_implementation": own.get("attention")}
    if device != "cpu":
        how["device_map"] = {"": device}  # straight to where they are wanted, without a second copy in CPU memory
    if bits := own.get("bits"):
        how["quantization_config"] = memory.quantization(bits, dtype)
    try:
        model, info = AutoModelForImageTextToText.from_pretrained(
            place, use_safetensors=True, output_loading_info=True, **how
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        places.refuse_weights(error, place, spec, how)
    if missing := sorted(info["missing_keys"]):
        raise AuditError(f'"{spec}": {place} lacks {len(missing)} tensors of the model, {missing[0]} among them.')
    return model


def _folder(adapter: str | Path) -> Path:
    """An adapter's folder: like a model's, from the working folder or else from the project's."""
    folder = next((f for f in (Path(adapter).expanduser(), root() / adapter) if f.is_dir()), Path(adapter))
    if not any((folder / name).is_file() for name in ("adapter_config.json", "config.json")):
        raise AuditError(
            f"{folder} is no adapter: it has no adapter_config.json, nor a whole model's config.json; name the folder "
            "that a finished training has left."
        )
    return folder


def _adapted(model, folder: Path):
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (RuntimeError, ValueError) as error:
        raise AuditError(f"the adapter in {folder} does not fit the model ({places.short(error)}).") from error


def _base_of(folder: Path) -> str:
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not base:
        raise AuditError(f"{folder}: its adapter_config.json names no base model; load that one with adapter=.")
    return resolve(base)
