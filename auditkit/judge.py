"""A model asked whether two answers mean the same, and what any such judge is worth on pairs labelled by hand.

The paper does not say which judge it used. A model is put the fixed prompt of prompts/same.txt, many pairs at once, as
LAVE does (https://arxiv.org/abs/2310.02567) but for two answers instead of an answer and a label, without the picture,
and with yes or no instead of grades. It may be anything that writes: a vision-language model, a language model without
eyes, or a server. A reply that is neither yes nor no counts as no.

The labels of same_pairs.jsonl are ours, by this rule: two answers are the same if whoever asked would learn the same
from both. So "poodle" and "dog" differ, whatever the one implies of the other.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError

from auditkit import lines, places, specs, stats, vlm
from auditkit.batches import in_batches
from auditkit.disagreement import Pair, normal, same
from auditkit.errors import AuditError, Unfinished
from auditkit.memory import at_work

FILE = "judged.jsonl"  # in a stage's folder: what a model replied
REPLY_TOKENS = 12
ENOUGH = 20  # replies after which a judge that mostly says neither yes nor no is refused


class Judge:
    """Decides pairs of answers by asking a model; every reply is filed as soon as its batch is done.

    It reads the answers as they were given: their normalised texts would lose a "not". Replies are filed beside these
    and found again for whatever has the same normalised texts.
    `asked` counts the pairs put to it by this object, `unclear` its replies on file that were neither yes nor no.
    """

    def __init__(self, p, folder: Path | None = None):
        self.p, self.path, self.asked, self.unclear, self._model = p, folder and folder / FILE, 0, 0, None
        self._replies: dict[Pair, str] = {}
        for row in lines.read(self.path) if self.path else ():
            if specs.same(row["judge"], p.same):
                self._replies[normal(row["question"], row["a"], row["b"])] = row["reply"]

    def __call__(self, pairs: Sequence[Pair]) -> list[bool]:
        """Whether each pair means the same.

        Raises AuditError when the model's replies are mostly neither yes nor no.
        """
        todo = list({normal(*pair): pair for pair in pairs if normal(*pair) not in self._replies}.values())
        if todo and self._model is None:
            self._model = load(self.p)

        def ask(rows: list[int]) -> None:
            batch = [todo[i] for i in rows]
            try:
                self._keep(batch, self._model.write([None] * len(batch), [prompts[i] for i in rows], REPLY_TOKENS))
            except Unfinished as error:  # a request among others failed; what came back has been paid for
                self._keep(batch, error.answers)
                raise

        if todo:
            prompts = [prompt(*pair) for pair in todo]
            with at_work(self._model):
                for _ in in_batches(self._model, prompts, ask):
                    self._refuse_nonsense()
        return [yes_or_no(self._replies[normal(*pair)]) is True for pair in pairs]

    def _keep(self, batch: Sequence[Pair], replies: Sequence[str | None]) -> None:
        """File what was replied, with what an endpoint says beside it (endpoint.Written)."""
        new = [(pair, reply) for pair, reply in zip(batch, replies, strict=True) if reply is not None]
        if self.path:
            judge = {"judge": self.p.same, "model": self._model.name}
            rows = (
                judge | {"question": q, "a": a, "b": b, "reply": str(reply)} | getattr(reply, "beside", {})
                for (q, a, b), reply in new
            )
            lines.append(self.path, rows)
        self._replies |= {normal(*pair): str(reply) for pair, reply in new}
        self.asked += len(new)

    def _refuse_nonsense(self) -> None:
        unclear = [reply for reply in self._replies.values() if yes_or_no(reply) is None]
        self.unclear = len(unclear)
        if len(self._replies) >= ENOUGH and len(unclear) > len(self._replies) / 2:
            raise AuditError(
                f'same: "{self.p.same}" cannot judge: of {len(self._replies)} replies {len(unclear)} are neither yes '
                f"nor no, such as {unclear[-1][:60]!r}; name another model, or text or embedding."
            )


def prompt(question: str, a: str, b: str) -> str:
    """What a model is asked; line breaks in an answer are taken out, so that none looks like a line of the prompt."""
    question, a, b = (" ".join(text.split()) for text in (question, a, b))
    return _prompt().format(question=question, a=a, b=b)


def yes_or_no(reply: str) -> bool | None:
    """What a judge's reply says; None if it says neither, or both.

    >>> [yes_or_no(reply) for reply in ("Yes.", "no, they differ", "The answer is **yes**", "Maybe", "yes and no", "")]
    [True, False, True, None, None, None]
    """
    words = set(re.findall(r"\b(?:yes|no)\b", reply.lower()))
    return "yes" in words if len(words) == 1 else None


def counts(folder: Path) -> dict[str, int]:
    """How many pairs a model judged in a stage, and how many replies were neither yes nor no; {} where none was asked.

    Returns {"judge_called", "judge_unclear"}, totals over all attempts.
    """
    replies = [yes_or_no(row["reply"]) for row in lines.read(folder / FILE)]
    return {"judge_called": len(replies), "judge_unclear": replies.count(None)} if replies else {}


@dataclass
class TextModel:
    """A language model without eyes; a picture given to it is not looked at."""

    name: str
    model: Any
    tokenizer: Any
    batch_size: int
    parked: Any = None  # memory.Parked: its weights' place while it does not write

    @torch.inference_mode()
    def write(
        self, images: Sequence, prompts: Sequence[str], max_new_tokens: int, temperature: float = 0.0
    ) -> list[str]:
        """What it writes to one batch of prompts, greedily or sampled; without thinking first, if its template can."""
        inputs = self.tokenizer.apply_chat_template(
            [[{"role": "user", "content": prompt}] for prompt in prompts],
            add_generation_prompt=True,
            enable_thinking=False,
            padding=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device)
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
        with vlm.quiet():
            out = self.model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
                **how or {"do_sample": False},
            )
        new = out[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]


def load(p, key: str = "same") -> vlm.Writer:
    """The model that a parameter, `same` or `namer`, names: as an image-text model where it is one, else as a language
    model.

    Raises AuditError for a model that cannot be had, for weights that are no safetensors, and for no chat template.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

    from auditkit import memory

    text = getattr(p, key)
    spec = specs.parse(text)
    if spec.engine != "transformers":
        return vlm.loader(p)(text)
    own = spec.options
    place, source = places.source(vlm.resolve(text), text, own)
    device = vlm._device(own.get("device", p.device))
    turns = p.memory == "turns" and device != "cpu" and "bits" not in own
    how = {"dtype": vlm._dtype(own.get("dtype", p.dtype), device), "attn_implementation": own.get("attention")}
    if device != "cpu" and not turns:
        how["device_map"] = {"": device}
    if "bits" in own:
        how["quantization_config"] = memory.quantization(own["bits"], how["dtype"])
    try:
        config = AutoConfig.from_pretrained(place, **source)
        own_code = getattr(config, "auto_map", {})
        if type(config) in AutoModelForImageTextToText._model_mapping or "AutoModelForImageTextToText" in own_code:
            return vlm.loader(p)(text)
        with vlm.quiet():
            tokenizer = AutoTokenizer.from_pretrained(place, padding_side="left", **source)
    except (OSError, ValueError, KeyError) as error:
        raise AuditError(f'{key}: "{text}" is no language model here ({places.short(error)}).') from error
    try:
        with vlm.quiet():
            model = AutoModelForCausalLM.from_pretrained(place, use_safetensors=True, **source, **how).eval()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        places.refuse_weights(error, place, text, source)
    if not tokenizer.chat_template:
        raise AuditError(f'{key}: "{text}" has no chat template, so it cannot be asked; name an instruct model.')
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    parked = memory.Parked(model, device) if turns else None
    return TextModel(spec.name, model, tokenizer, own.get("batch_size", p.batch_size), parked)


def agreement(kind: str, **how) -> dict:
    """How often a judge says of the labelled pairs what their labels say.

    Args:
        kind: text, embedding, or a model's spec.
        how: device, dtype, batch_size and memory for a model.

    Returns {"all": rate, "said_same_wrongly": rate over the pairs that differ, "said_different_wrongly": rate over
    those that are the same, "kinds": {kind: rate}, "unclear": replies neither yes nor no, None where none is asked}.
    """
    rows = pairs()
    p = SimpleNamespace(**{"device": "auto", "dtype": "auto", "batch_size": 64, "memory": "together"} | how, same=kind)
    alike = same(p)
    alike.prepare((row["question"], row["a"], row["b"]) for row in rows)
    right = [alike(row["a"], row["b"], row["question"]) == row["same"] for row in rows]
    wrong = {
        label: [not ok for ok, row in zip(right, rows, strict=True) if row["same"] is label] for label in (True, False)
    }
    kinds: dict[str, list[bool]] = {}
    for ok, row in zip(right, rows, strict=True):
        kinds.setdefault(row["kind"], []).append(ok)
    return {
        "all": stats.rate(sum(right), len(right)),
        "said_same_wrongly": stats.rate(sum(wrong[False]), len(wrong[False])),
        "said_different_wrongly": stats.rate(sum(wrong[True]), len(wrong[True])),
        "kinds": {name: stats.rate(sum(some), len(some)) for name, some in kinds.items()},
        "unclear": getattr(alike.decide, "unclear", None),
    }


def pairs() -> list[dict]:
    """The labelled pairs: {"question", "a", "b", "same": bool, "kind"}."""
    file = Path(__file__).parent / "same_pairs.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def table(kinds: Sequence[str], **how) -> str:
    """What each judge is worth, as text: agreement in % with its 95 % interval, over all and by kind of pair."""
    found = {kind: agreement(kind, **how) for kind in kinds}
    first = next(iter(found.values()))
    heads = [f"{len(pairs())} pairs labelled by hand, % right", *kinds]
    body = [["all", *(_percent(f["all"], True) for f in found.values())]]
    for name in ("said_same_wrongly", "said_different_wrongly"):
        body.append([name.replace("_", " "), *(_percent(f[name], True) for f in found.values())])
    for name, some in first["kinds"].items():
        body.append([f"  {name} (n = {some['n']})", *(_percent(f["kinds"][name]) for f in found.values())])
    if any(f["unclear"] is not None for f in found.values()):
        body.append(
            ["replies neither yes nor no", *("" if f["unclear"] is None else str(f["unclear"]) for f in found.values())]
        )
    widths = [max(len(row[i]) for row in [heads, *body]) for i in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in [heads, *body]
    )


def _percent(rate: dict, interval: bool = False) -> str:
    text = f"{100 * rate['value']:.1f}"
    return f"{text} ({100 * rate['low']:.1f} to {100 * rate['high']:.1f})" if interval else text


@cache
def _prompt() -> str:
    return (Path(__file__).parent / "prompts" / "same.txt").read_text(encoding="utf-8").strip()
