"""Which models a stage holds, what they do there, and whether that fits a device.

Each notebook is a process of its own, so memory is counted stage by stage: the weights of the models it loads, twice
where it loads two copies, and the largest piece of work that any of them does (memory.py). With `memory: together`
all weights lie on the device at once; with `memory: turns` only those of the model at work, of quantized ones and of
one in training. Pipelines that paint take no turns: they stay, unless they are told to ?offload.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from auditkit import specs
from auditkit.auditor.write import auditor_prompt
from auditkit.errors import AuditError
from auditkit.params import Params, keys_naming
from auditkit.planning import memory, sizes
from auditkit.planning.pipeline_memory import PipelineWeight, picture_models

TEMPLATE = 24  # tokens of a chat around prompt and picture


@dataclass(frozen=True)
class PlacedModel:
    """One model of the file and what it would take."""

    roles: tuple[str, ...]
    text: str  # its spec
    spec: specs.Spec
    size: sizes.Size | None  # None: nobody knows
    e: int  # bytes of a number

    @property
    def weights(self) -> float:
        """Bytes of its weights; 0 where they are elsewhere or unknown."""
        bits = self.spec.options.get("bits")
        return memory.weights(self.size, self.e, bits) if self.size and self.spec.engine == "transformers" else 0.0

    @property
    def stays(self) -> bool:
        """Whether it stays on the device when models take turns."""
        return "bits" in self.spec.options

    @property
    def device(self) -> str:
        """The device it asks for, "" for the one that all others are on."""
        device = self.spec.options.get("device", "")
        return "" if device in ("auto", "cuda", "cuda:0", "mps") else device

    def prompt(self, question: int) -> int:
        """Tokens of a prompt with a picture and so many tokens of text."""
        assert self.size is not None  # nobody asks it of a model nobody knows
        return self.size.image_tokens + question + TEMPLATE


@dataclass(frozen=True)
class MemoryNeed:
    """What one stage takes of one device, in bytes."""

    stage: str
    device: str
    together: float
    turns: float
    parked: float  # of CPU memory, when models take turns
    largest: str  # piece of work, all models together
    largest_in_turns: str  # the same with its model's weights, which have to come for it

    def bytes(self, turns: bool) -> float:
        return self.turns if turns else self.together


def placed_models(p: Params, on_gpu: bool) -> list[PlacedModel]:
    """The models of a parameter file, each once, with its size.

    `on_gpu` decides what dtype "auto" is: bfloat16 there, float32 on a CPU.
    Raises AuditError for a model that does not exist.
    """
    named = {"auditor": p.auditor, "target": p.target, **({"peer": p.peer} if p.peer else {})}
    named |= {f"reference {n}": text for n, text in enumerate(p.references, 1)}
    named |= {"judge": p.same} if p.same not in ("text", "embedding") else {}
    roles: dict[str, list[str]] = {}
    for role, text in named.items():
        roles.setdefault(text, []).append(role)
    found = []
    for text, its in roles.items():
        spec = specs.parse(text)
        dtype = spec.options.get("dtype", p.dtype)
        e = memory.BYTES[dtype] if dtype != "auto" else 2 if on_gpu else 4
        try:
            size = sizes.look_up(text)
        except AuditError as error:
            raise AuditError(f"{keys_naming(p, text)}: {error}") from error
        found.append(PlacedModel(tuple(its), text, spec, size, e))
    return found


def memory_needs(
    p: Params, cast: Sequence[PlacedModel], processes: int = 1, beside: Sequence[PipelineWeight] = ()
) -> list[MemoryNeed]:
    """What each stage takes of each device its models are on.

    Args:
        cast: the models of `placed_models`; one of unknown size takes nothing here.
        processes: over which a training step is shared out (accelerate launch), each with models of its own.
        beside: pipelines and picture check, of `picture_models`.
    """
    by_role = {role: replace(model, roles=(role,)) for model in cast for role in model.roles}  # each loaded for itself
    aud, target = by_role["auditor"], by_role["target"]
    references = [model for role, model in by_role.items() if role.startswith("reference")]
    peer, judge = ([by_role[role]] if role in by_role else [] for role in ("peer", "judge"))
    repaired = replace(target, roles=("repaired",))
    batch, new = aud.spec.options.get("batch_size", p.batch_size), p.max_question_tokens
    asks = [(aud, "writing questions", _at(aud, lambda m, t: memory.writing(m.size, m.e, batch, t, new)))]
    rates = [(aud, "rating questions", _at(aud, lambda m, t: memory.scoring(m.size, m.e, batch, t, new)))]
    ensemble = [target, *references, *judge]
    answers = {m.roles: (m, "answering", answering_bytes(m, p)) for m in (*ensemble, *peer, repaired)}

    def said(*by: PlacedModel) -> list[tuple]:
        return [answers[m.roles] for m in by]

    learns, held = grpo_bytes(aud, p, processes)
    repair, kept = repair_bytes(target, p)
    stages = {
        "01_models": ([target, *references, *peer, aud], [*asks, *said(target, *references, *peer)]),
        "02_disagreement": ([aud, *ensemble], [*asks, *rates, *said(*ensemble)]),
        "03_counterfactual": ([aud, *ensemble], [*asks, *rates, *said(*ensemble)]),
        "04_auditor": ([aud, *ensemble], [*rates, *learns, *said(*ensemble)]),
        # WriteProbes holds the untrained auditor and one of its checkpoints at a time
        "05_audit": ([aud] * min(2, p.grpo_checkpoints + 1) + ensemble, [*asks, *rates, *said(*ensemble)]),
        "07_rectify": ([target, repaired, *judge], [*repair, *said(target, repaired, *judge)]),
        "08_benchmark": ([target, repaired, *peer, *judge], said(target, repaired, *peer, *judge)),
    }
    trained = {"04_auditor": (aud, held), "07_rectify": (target, kept)}
    found = []
    for stage, (loaded, work) in stages.items():
        others = [w for w in beside if stage in w.stages]
        for device in sorted({m.device for m in loaded} | {w.device for w in others}):
            here, its = [m for m in loaded if m.device == device], [w for w in others if w.device == device]
            found.append(_need(stage, device, here, its, work, *trained.get(stage, (None, 0.0))))
    return found


def needs_on_device(found: Sequence[MemoryNeed], on_gpu: bool) -> list[MemoryNeed]:
    """Without what a model with ?device=cpu takes, where it is a GPU that has to suffice."""
    return [need for need in found if not (on_gpu and need.device == "cpu")]


def _need(
    stage: str,
    device: str,
    loaded: list[PlacedModel],
    beside: list[PipelineWeight],
    work: list,
    trained: PlacedModel | None,
    held: float,
) -> MemoryNeed:
    """What the models `loaded` take with their work, [(model, what, bytes)], and what stands `beside` them; `held` is
    there throughout a training.
    """
    work = [(m, what, size) for m, what, size in work if m in loaded]
    held = held if trained in loaded else 0.0

    def comes(m: PlacedModel) -> float:  # what has to be brought when it is its turn
        return 0.0 if m.stays or m is trained else m.weights

    def largest(in_turns: bool) -> tuple[float, str]:
        pieces = [(size + (comes(m) if in_turns else 0.0), f"{m.spec.name} {what}") for m, what, size in work]
        pieces += [(w.at_work - w.stays(in_turns), f"{w.spec.name} {w.work}") for w in beside]
        return max(pieces, key=lambda piece: piece[0])

    one_each = {m.roles: m for m in loaded}.values()
    (together, what), (turns, that) = largest(False), largest(True)
    return MemoryNeed(
        stage,
        device,
        together=sum(m.weights for m in loaded) + sum(w.stays(False) for w in beside) + held + together,
        turns=sum(m.weights - comes(m) for m in one_each) + sum(w.stays(True) for w in beside) + held + turns,
        parked=sum(comes(m) for m in loaded) + sum(w.weights - w.stays(True) for w in beside),
        largest=what,
        largest_in_turns=that,
    )


def _at(model: PlacedModel, formula: Callable) -> float:
    """A formula of the auditor's prompt, 0 for a model nobody knows or one that runs elsewhere."""
    if model.size is None or model.spec.engine != "transformers":
        return 0.0
    return formula(model, model.prompt(len(auditor_prompt()) // 4))


def answering_bytes(model: PlacedModel, p: Params) -> float:
    """Bytes that one batch of a model's answers takes on top of its weights: cache and activations."""
    if model.size is None or model.spec.engine != "transformers":
        return 0.0
    rows = model.spec.options.get("batch_size", p.batch_size)
    return memory.writing(model.size, model.e, rows, model.prompt(p.max_question_tokens), p.max_answer_tokens)


def grpo_bytes(aud: PlacedModel, p: Params, processes: int) -> tuple[list, float]:
    """A training step of the auditor: its pieces of work, [(model, what, bytes)], and the bytes there throughout."""
    rows = math.ceil(p.grpo_images * p.group_size / processes)
    micro = min(rows, p.grpo_micro_batch or rows)
    new = p.max_question_tokens
    if aud.size is None:
        return [], 0.0
    held = memory.adapter(aud.size, p.grpo_lora_rank) + 4 * rows * aud.size.pixels  # pictures stay, in float32
    # the replay's half as many rows come on top of the graph of the micro-batch, which still waits for its way back
    again = micro // 2 if p.replay_weight else 0
    step = _at(aud, lambda m, t: memory.training(m.size, m.e, micro, t, new))
    step += _at(aud, lambda m, t: memory.replaying(m.size, m.e, again, t, new))
    work = [(aud, f"learning, {micro} questions at once", step)]
    if p.grpo_rollouts == "transformers":
        written = _at(aud, lambda m, t: memory.writing(m.size, m.e, rows, t, new))
        work.append((aud, f"writing {rows} questions at once", written))
    return work, held


def repair_bytes(target: PlacedModel, p: Params) -> tuple[list, float]:
    """The same of the target's repair."""
    if target.size is None or target.spec.engine != "transformers":
        return [], 0.0
    rows = p.rectify_micro_batch or p.rectify_batch
    step = memory.training(target.size, target.e, rows, target.prompt(p.max_question_tokens), p.max_answer_tokens)
    rank = p.rectify_lora_rank
    held = memory.adapter(target.size, rank) if rank else memory.whole(target.size)
    return [(target, f"learning, {rows} examples at once", step)], held


def memory_advice(p: Params, on_gpu: bool, limit: float, processes: int = 1) -> dict[str, object] | None:
    """The least change of the file with which every stage fits into `limit` bytes: key -> value; None if there is none.

    What costs only time is tried first: turns, parts of a pipeline in CPU memory, smaller pieces of a step, smaller
    batches. Then four bits for the peer
    and the references, the largest first, and at last fewer pictures a step, which changes what is learnt.
    """

    def fits(changes: Mapping) -> bool:
        q = replace(p, **changes)
        turns = on_gpu and q.memory == "turns"
        found = memory_needs(q, placed_models(q, on_gpu), processes, picture_models(q, on_gpu))
        return all(need.bytes(turns) <= limit for need in needs_on_device(found, on_gpu))

    def parts(whole: int, now: int, least: int) -> list[int]:
        return [n for n in (64, 32, 16, 8, 4, 2, 1) if least <= n < now and whole % n == 0]

    rows = p.grpo_images * p.group_size
    options: dict[str, list] = {
        "memory": ["turns"] if on_gpu and p.memory == "together" else [],  # on a CPU nothing waits elsewhere
        "generator": _offloaded(p.generator) if on_gpu else [],
        "editor": _offloaded(p.editor) if on_gpu else [],
        "grpo_micro_batch": parts(rows, p.grpo_micro_batch or rows, 1),
        "rectify_micro_batch": parts(p.rectify_batch, p.rectify_micro_batch or p.rectify_batch, 1),
        "batch_size": [n for n in (64, 32, 16, 8, 4) if n < p.batch_size],
        "peer": [four for four in [_in_four_bits(p.peer)] if p.peer and four != p.peer],
        "references": _quantized(p, on_gpu),
        "grpo_images": [
            n for n in (16, 8, 4, 2, 1) if n < p.grpo_images and n * p.group_size % (p.grpo_micro_batch or 1) == 0
        ],
    }
    changes: dict[str, object] = {}
    for key, values in options.items():
        if fits(changes):
            break
        changes |= {key: values[-1]} if values else {}
    if not fits(changes):
        return None
    for key in reversed(list(changes)):  # not more than is needed, and of what is dearest the least
        rest = {name: value for name, value in changes.items() if name != key}
        if fits(rest):
            changes = rest
        else:
            changes[key] = next(value for value in options[key] if fits(rest | {key: value}))
    return changes


def _quantized(p: Params, on_gpu: bool) -> list[list[str]]:
    """The references with the largest in four bits, with the two largest, and so on."""
    weights = {m.text: m.weights for m in placed_models(p, on_gpu)}
    found, now = [], list(p.references)
    for text in sorted(p.references, key=lambda text: -weights[text]):
        four = _in_four_bits(text)
        if weights[text] and four != text:
            now = [four if other == text else other for other in now]
            found.append(now)
    return found


def _offloaded(text: str) -> list[str]:
    """A pipeline with less of it on the device at a time: one part, then a layer or two; none that it has already, and
    none for one that is told to be on the CPU, where offloading is refused.
    """
    place, _, query = text.partition("?")
    rest = [option for option in query.split("&") if option and not option.startswith("offload=")]
    if not text or (own := specs.parse_pipeline(text).options).get("device") == "cpu":
        return []
    less = {"none": ["model", "group"], "model": ["group"]}.get(own.get("offload", "none"), [])
    return [f"{place}?{'&'.join([*rest, f'offload={how}'])}" for how in less]


def _in_four_bits(text: str) -> str:
    spec = specs.parse(text)
    if spec.engine != "transformers" or "bits" in spec.options:
        return text
    return f"{text}{'&' if spec.options else '?'}bits=4"
