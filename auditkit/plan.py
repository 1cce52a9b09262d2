"""What a parameter file asks of a machine, before anything is downloaded: memory, calls, downloads, and time.

Everything follows from the parameters, the models' sizes (sizes.py) and the formulas of footprint.py:

1) memory, stage by stage, since each notebook is a process of its own: the weights of the models it loads, twice where
   it loads two copies, and the largest piece of work any of them does there. With `memory: together` all weights lie on
   the device at once; with `memory: turns` only those of the model at work, of quantized ones and of one in training;
2) calls: how often each model is asked, at most. Questions that are malformed, or met again, are not asked;
3) time, from rates that `auditkit bench` measured and wrote to outputs/bench.json. Where none was measured there is no
   estimate.

Of a GPU's memory 6 % are left for its context, libraries and pieces too small to be used (our choice). GB are 10^9
bytes, so that a card sold with 80 GB has a little more than the plan counts on.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from auditkit import auditor, footprint, sizes, specs
from auditkit import params as parameters
from auditkit.errors import AuditError
from auditkit.params import Params

RESERVE = 0.06  # share of the device's memory that is not planned with
TEMPLATE = 24  # tokens of a chat around prompt and picture
KINDS = 1000  # pictures the untrained auditor asks about before training (grpo)
CHECKED = 200  # findings the repaired target is asked again (notebook 07)
GB = 1e9


@dataclass(frozen=True)
class Model:
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
        return footprint.weights(self.size, self.e, bits) if self.size and self.spec.engine == "transformers" else 0.0

    @property
    def stays(self) -> bool:
        """Whether it stays on the device when models take turns."""
        return "bits" in self.spec.options

    def prompt(self, question: int) -> int:
        """Tokens of a prompt with a picture and so many tokens of text."""
        return self.size.image_tokens + question + TEMPLATE


@dataclass(frozen=True)
class Need:
    """What one stage takes of one device, in bytes."""

    stage: str
    device: str
    together: float
    turns: float
    parked: float  # of CPU memory, when models take turns
    why: str  # the largest piece of work

    def bytes(self, p: Params) -> float:
        return self.turns if p.memory == "turns" else self.together


def models(p: Params, on_gpu: bool) -> list[Model]:
    """The models of a parameter file, each once, with its size.

    `on_gpu` decides what dtype "auto" is: bfloat16 there, float32 on a CPU.
    Raises AuditError for a model that does not exist.
    """
    named = {"auditor": p.auditor, "target": p.target, **({"peer": p.peer} if p.peer else {})}
    named |= {f"reference {n}": text for n, text in enumerate(p.references, 1)}
    roles: dict[str, list[str]] = {}
    for role, text in named.items():
        roles.setdefault(text, []).append(role)
    found = []
    for text, its in roles.items():
        spec = specs.parse(text)
        dtype = spec.options.get("dtype", p.dtype)
        e = footprint.BYTES[dtype] if dtype != "auto" else 2 if on_gpu else 4
        found.append(Model(tuple(its), text, spec, sizes.look_up(text), e))
    return found


def needs(p: Params, cast: Sequence[Model], processes: int = 1) -> list[Need]:
    """What each stage takes of each device its models are on.

    Args:
        cast: the models of `models`; one of unknown size takes nothing here.
        processes: over which a training step is shared out (accelerate launch), each with models of its own.
    """
    by_role = {role: model for model in cast for role in model.roles}
    aud, target = by_role["auditor"], by_role["target"]
    references = [by_role[role] for role in by_role if role.startswith("reference")]
    peer = [by_role["peer"]] if "peer" in by_role else []
    answer = {m.text: _answering(m, p) for m in cast}
    write = _at(aud, lambda m, t: footprint.writing(m.size, m.e, p.batch_size, t, p.max_question_tokens))
    judge = _at(aud, lambda m, t: footprint.scoring(m.size, m.e, p.batch_size, t, p.max_question_tokens))
    asks = [(aud, "writing questions", write), (aud, "rating questions", judge)]
    answers = [(m, "answering", answer[m.text]) for m in (target, *references)]
    learns, held = _grpo(aud, p, processes)
    repair, kept = _rectify(target, p)
    stages = {
        "01_models": ([target, *references, *peer, aud], [*asks[:1], *answers, *((m, "answering", answer[m.text]) for m in peer)]),
        "02_disagreement": ([aud, target, *references], [*asks, *answers]),
        "03_counterfactual": ([target, *references], answers),
        "04_auditor": ([aud, target, *references], [*asks[1:], *learns, *answers]),
        "05_audit": ([aud] * (p.grpo_checkpoints + 1) + [target, *references], [*asks, *answers]),
        "07_rectify": ([target, target], [*repair, *answers[:1]]),
        "08_benchmark": ([target, target, *peer], [*answers[:1], *((m, "answering", answer[m.text]) for m in peer)]),
    }  # fmt: skip
    trained = {"04_auditor": (aud, held), "07_rectify": (target, kept)}
    found = []
    for stage, (loaded, work) in stages.items():
        for device in sorted({m.spec.options.get("device", "") for m in loaded}):
            here = [m for m in loaded if m.spec.options.get("device", "") == device]
            found.append(_need(stage, device, here, work, *trained.get(stage, (None, 0.0))))
    return found


def _need(stage: str, device: str, loaded: list[Model], work: list, trained: Model | None, held: float) -> Need:
    work = [(m, what, size) for m, what, size in work if m in loaded]
    held = held if trained in loaded else 0.0
    together = sum(m.weights for m in loaded) + held
    stay = sum(m.weights for m in {m.text: m for m in loaded if m.stays or m is trained}.values()) + held
    parked = sum(m.weights for m in loaded if not m.stays and m is not trained)
    model, what, most = max(work, key=lambda w: w[2] + (0 if w[0].stays or w[0] is trained else w[0].weights))
    turns = stay + most + (0 if model.stays or model is trained else model.weights)
    largest = max(work, key=lambda w: w[2])
    return Need(stage, device, together + largest[2], turns, parked, f"{largest[0].spec.name} {largest[1]}")


def _at(model: Model, formula) -> float:
    """A formula of the auditor's prompt, 0 for a model nobody knows or one that runs elsewhere."""
    if model.size is None or model.spec.engine != "transformers":
        return 0.0
    return formula(model, model.prompt(len(auditor.prompt()) // 4))


def _answering(model: Model, p: Params) -> float:
    if model.size is None or model.spec.engine != "transformers":
        return 0.0
    rows = model.spec.options.get("batch_size", p.batch_size)
    return footprint.writing(model.size, model.e, rows, model.prompt(p.max_question_tokens), p.max_answer_tokens)


def _grpo(aud: Model, p: Params, processes: int) -> tuple[list, float]:
    """(the pieces of work of a training step, bytes that are there throughout)."""
    rows = math.ceil(p.grpo_images * p.group_size / processes)
    micro = min(rows, p.grpo_micro_batch or rows)
    new = p.max_question_tokens
    if aud.size is None:
        return [], 0.0
    held = footprint.adapter(aud.size, p.grpo_lora_rank) + 4 * rows * aud.size.pixels  # pictures stay, in float32
    # the replay's half as many rows come on top of the graph of the micro-batch, which still waits for its way back
    again = micro // 2 if p.replay_weight else 0
    step = _at(aud, lambda m, t: footprint.training(m.size, m.e, micro, t, new))
    step += _at(aud, lambda m, t: footprint.training(m.size, m.e, again, t, new)) if again else 0
    work = [(aud, f"learning, {micro} questions at once", step)]
    if p.grpo_rollouts == "transformers":
        written = _at(aud, lambda m, t: footprint.writing(m.size, m.e, rows, t, new))
        work.append((aud, f"writing {rows} questions at once", written))
    return work, held


def _rectify(target: Model, p: Params) -> tuple[list, float]:
    if target.size is None or target.spec.engine != "transformers":
        return [], 0.0
    rows = p.rectify_micro_batch or p.rectify_batch
    step = footprint.training(
        target.size, target.e, rows, target.prompt(p.max_question_tokens), p.max_answer_tokens
    )
    return [(target, f"learning, {rows} examples at once", step)], footprint.adapter(target.size, p.rectify_lora_rank)


def calls(p: Params, skills: int | None) -> list[dict]:
    """How often each kind of model is asked in each stage, at most: {"stage", "images", "auditor", "target", "references"
    (each of them), "peer", "trained"}; `trained` are the questions or examples of a training.

    `skills` is the number of benchmarks the images come with, None where that is not known yet: those are then left out.
    """
    some = (skills or 0) * max(4, p.benchmark_examples // 10)
    every = (skills or 0) * p.benchmark_examples
    blind = p.blind_candidates * (p.blind_images // 2) + p.blind_images - p.blind_images // 2
    rollouts = p.grpo_steps * p.grpo_images * p.group_size
    first = min(KINDS, p.train_images)
    base, probes, checked = p.baseline_images, p.audit_probes, min(CHECKED, p.audit_probes)
    peer = some if p.peer else 0, every if p.peer else 0
    rows = [
        ("01_models", some + 3, 3, some, some, peer[0], 0),
        ("02_disagreement", base, base, base, base, 0, 0),
        ("04_auditor", p.train_images, first + rollouts, rollouts, rollouts, 0, rollouts),
        ("05_audit", probes + p.blind_images, probes, probes + blind, probes, 0, 0),
        ("07_rectify", p.rectify_original, 0, p.rectify_original + checked, 0, 0, p.rectify_steps * p.rectify_batch),
        ("08_benchmark", every, 0, 2 * every + base, 0, peer[1], 0),
    ]
    names = ("stage", "images", "auditor", "target", "references", "peer", "trained")
    return [dict(zip(names, row, strict=True)) for row in rows]


def seconds(p: Params, cast: Sequence[Model], skills: int | None, bench: Mapping) -> dict[str, float | None]:
    """Seconds of each stage at the rates `auditkit bench` measured; None where it did not measure what the stage does.

    A step of another size is taken to last in proportion to its questions.
    """
    by_role = {role: model for model in cast for role in model.roles}
    rates = {name: row["per_second"] for name, row in bench.get("answers", {}).items()}
    step = bench.get("step", {})
    aud = sizes.kind(by_role["auditor"].text)
    of_step = step.get("seconds", {}) if step.get("auditor") == aud else {}
    writes = sum(of_step.get(part, 0) for part in ("generation", "plausibility")) / step["rows"] if of_step else None
    learns = sum(of_step.get(part, 0) for part in ("loss", "backward", "rest")) / step["rows"] if of_step else None
    found: dict[str, float | None] = {}
    for row in calls(p, skills):
        asked = [(rates.get(sizes.kind(by_role["target"].text)), row["target"])]
        asked += [(rates.get(sizes.kind(text)), row["references"]) for text in p.references]
        asked += [(rates.get(sizes.kind(p.peer)), row["peer"])] if p.peer else []
        asked = [(1 / rate if rate else None, n) for rate, n in asked] + [(writes, row["auditor"])]
        asked += [(learns if row["stage"] == "04_auditor" else None, row["trained"])]
        each = [(unit, n) for unit, n in asked if n]
        found[row["stage"]] = None if any(unit is None for unit, _ in each) else sum(unit * n for unit, n in each)
    return found


def advice(p: Params, on_gpu: bool, limit: float, processes: int = 1) -> dict[str, object] | None:
    """The least change of the file with which every stage fits into `limit` bytes: key -> value; None if there is none.

    What costs only time is tried first: turns, smaller pieces of a step, smaller batches. Then four bits for the peer
    and the references, the largest first, and at last fewer pictures a step, which changes what is learnt.
    """

    def fits(changes: Mapping) -> bool:
        q = replace(p, **changes)
        return all(need.bytes(q) <= limit for need in needs(q, models(q, on_gpu), processes))

    def parts(whole: int, now: int, least: int) -> list[int]:
        return [n for n in (64, 32, 16, 8, 4, 2, 1) if least <= n < now and whole % n == 0]

    rows = p.grpo_images * p.group_size
    options: dict[str, list] = {
        "memory": ["turns"] if p.memory == "together" else [],
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
    weights = {m.text: m.weights for m in models(p, on_gpu)}
    found, now = [], list(p.references)
    for text in sorted(p.references, key=lambda text: -weights[text]):
        four = _in_four_bits(text)
        if weights[text] and four != text:
            now = [four if other == text else other for other in now]
            found.append(now)
    return found


def _in_four_bits(text: str) -> str:
    spec = specs.parse(text)
    if spec.engine != "transformers" or "bits" in spec.options:
        return text
    return f"{text}{'&' if spec.options else '?'}bits=4"


@dataclass(frozen=True)
class Machine:
    """What there is to run on: `devices` of `size` bytes each, of which the plan uses all but RESERVE."""

    name: str
    size: float
    devices: int
    on_gpu: bool
    ram: float | None = None  # bytes of CPU memory, where the machine is this one

    @property
    def limit(self) -> float:
        return self.size * (1 - RESERVE)


def machine(gpu: float | None, gpus: int | None) -> Machine:
    """The GPUs named, or else those found here, or else this machine's own memory.

    Raises AuditError for a GPU of no memory, or for no GPUs.
    """
    import torch

    if (gpu is not None and gpu <= 0) or (gpus is not None and gpus < 1):
        raise AuditError("--gpu is the memory of one GPU in GB, --gpus how many there are: both above 0.")
    if gpu is not None:
        return Machine(f"GPU of {gpu:g} GB", gpu * GB, gpus or 1, True)
    if torch.cuda.is_available():
        least = min(
            (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())),
            key=lambda device: device.total_memory,
        )
        return Machine(least.name, least.total_memory, gpus or torch.cuda.device_count(), True, _ram())
    ram = _ram()
    if ram is None:
        raise AuditError("no GPU is here, and how much memory there is cannot be told: name a GPU, as in --gpu 80.")
    return Machine("this machine, no GPU", ram, 1, False, ram)


def _ram() -> float | None:
    import os

    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None


def skills(p: Params) -> int | None:
    """How many benchmarks the images come with; None for a data set that would have to be downloaded to know."""
    from auditkit import images

    return None if p.images.startswith("hub:") else len(images.load(p.images).benchmarks(1))


def measured() -> dict:
    """What `auditkit bench` wrote to outputs/bench.json; {} where it did not run, or only at toy size."""
    path = parameters.root() / "outputs" / "bench.json"
    try:
        bench = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        raise AuditError("outputs/bench.json is damaged: delete it, or run auditkit bench again.") from None
    return {} if bench.get("tiny") else bench


def tell(p: Params, here: Machine) -> str:
    """The plan as text.

    Raises AuditError as `models` does.
    """
    cast, many = models(p, here.on_gpu), skills(p)
    lines = [f"{p.run_name}: {p.params_file} on {here.devices} x {here.name}", "", *_models_table(cast), ""]
    lines += [*_memory_table(p, cast, here), "", *_calls_table(p, cast, many, here)]
    return "\n".join(lines)


def refuse(p: Params, here: Machine) -> None:
    """Raise AuditError, naming the keys to change, if the run cannot fit."""
    cast = models(p, here.on_gpu)
    for model in cast:
        device = model.spec.options.get("device", "")
        if here.on_gpu and device.startswith("cuda:") and int(device[5:]) >= here.devices:
            raise AuditError(f'"{model.text}": there is no {device} among {here.devices} GPU(s); name more with --gpus.')
    processes = _processes(cast, here)
    worst = max(needs(p, cast, processes), key=lambda need: need.bytes(p))
    most = worst.bytes(p)
    if most > here.limit:
        sentence = (
            f"{worst.stage} takes {most / GB:.1f} GB, but of {here.name} ({here.size / GB:.0f} GB) "
            f"{here.limit / GB:.1f} can be planned with"
        )
        changes = advice(p, here.on_gpu, here.limit, processes)
        if changes is None:
            raise AuditError(f"{sentence}; no setting makes it fit: name smaller models, or take a larger device.")
        words = ", ".join(f"{key}: {_yaml(value)}" for key, value in changes.items())
        raise AuditError(f"{sentence}; it fits with {words}.")
    parked = max(need.parked for need in needs(p, cast, processes)) if p.memory == "turns" and here.on_gpu else 0
    if here.ram and parked > here.ram:
        raise AuditError(
            f"memory: turns keeps {parked / GB:.0f} GB of weights in CPU memory, but there are {here.ram / GB:.0f}; "
            f"give the largest references ?bits=4, which stay on the GPU."
        )


def _yaml(value) -> str:
    return f"[{', '.join(value)}]" if isinstance(value, list) else str(value)


def _processes(cast: Sequence[Model], here: Machine) -> int:
    """Copies of the run: one a GPU, unless the file itself deals its models out over the GPUs."""
    return 1 if any("device" in m.spec.options for m in cast) else here.devices


def _models_table(cast: Sequence[Model]) -> list[str]:
    lines = [f"{'model':<38}{'as':<26}{'parameters':>11}{'weights':>10}{'download':>10}"]
    for m in cast:
        roles = ", ".join(m.roles)
        if m.spec.engine == "endpoint":
            lines.append(f"{m.spec.name:<38}{roles:<26}{'behind an address: nothing is loaded here':>31}")
            continue
        if m.size is None:
            lines.append(f"{m.text:<38}{roles:<26}{'unknown':>11}")
            continue
        load = "none" if not m.size.on_disk else f"{m.size.on_disk / GB:.1f} GB"
        weights = _bytes(m.weights) + (f" ({m.spec.options['bits']} bits)" if m.stays else "")
        lines.append(f"{m.text:<38}{roles:<26}{_number(m.size.parameters):>11}{weights:>10}{load:>10}")
        if m.size.note not in ("", "its files"):
            lines.append(f"  from {m.size.note}" + (f"; assumed: {m.size.assumed}" if m.size.assumed else ""))
    total = sum(m.size.on_disk or 0 for m in cast if m.size)
    lines.append(f"to download: {_bytes(total) if total else 'nothing'}")
    if unknown := [m.text for m in cast if m.size is None and m.spec.engine != "endpoint"]:
        lines.append(
            f"Not known without a network: {', '.join(unknown)}. They are counted as nothing below; ask again with a "
            "network, or name a folder that holds them."
        )
    return lines


def _memory_table(p: Params, cast: Sequence[Model], here: Machine) -> list[str]:
    found = needs(p, cast, _processes(cast, here))
    place = "GPU" if here.on_gpu else "machine"
    lines = [f"{'memory of one ' + place:<24}{'together':>11}{'in turns':>11}   largest piece of work"]
    for need in found:
        where = f" {need.device}" if need.device else ""
        lines.append(f"{need.stage + where:<24}{_bytes(need.together):>11}{_bytes(need.turns):>11}   {need.why}")
    limit = f"{_bytes(here.limit)} of {_bytes(here.size)} can be planned with."
    together, turns = (max(getattr(n, how) for n in found) <= here.limit for how in ("together", "turns"))
    fit = (
        "All models fit together (memory: together)." if together else
        "They must take turns (memory: turns)." if turns else "They do not fit, not even in turns."
    )  # fmt: skip
    lines.append(f"{limit} {fit} The file says memory: {p.memory}.")
    if p.memory == "turns" and here.on_gpu:
        lines.append(f"In turns, up to {_bytes(max(n.parked for n in found))} of weights wait in CPU memory.")
    quantized = [f"{m.spec.name} ({m.spec.options['bits']} bits)" for m in cast if m.stays]
    lines.append(f"Quantized: {', '.join(quantized) if quantized else 'none; ?bits=4 behind a model asks for it'}.")
    return lines


def _calls_table(p: Params, cast: Sequence[Model], many: int | None, here: Machine) -> list[str]:
    bench = measured()
    times = seconds(p, cast, many, bench) if bench else {}
    head = "".join(f"{name:>12}" for name in ("pictures", "auditor", "target", "references", "trained on"))
    lines = [f"{'calls at most':<18}{head}" + (f"{'time':>12}" if bench else "")]
    for row in calls(p, many):
        asked = (row["images"], row["auditor"], row["target"] + row["peer"], row["references"], row["trained"])
        line = f"{row['stage']:<18}" + "".join(f"{n:>12,}" for n in asked)
        if bench:
            time = times[row["stage"]]
            line += f"{'unmeasured' if time is None else _clock(time / _processes(cast, here)):>12}"
        lines.append(line)
    lines.append(f"A reference is asked so often each, {len(p.references)} of them; a peer's calls are with the target's.")
    if many is None:
        lines.append("The benchmarks of a hub data set are not counted: how many there are shows once it is loaded.")
    if bench:
        lines.append(f"Time at the rates of outputs/bench.json, measured on {bench['device']}.")
    else:
        lines.append("No time is estimated: `auditkit bench` on the GPU that is to run this measures the rates.")
    return lines


def _bytes(n: float) -> str:
    return f"{n / GB:.1f} GB" if n >= GB / 10 else f"{n / 1e6:.1f} MB"


def _number(n: int) -> str:
    return f"{n / 1e9:.2f} B" if n >= 1e9 else f"{n / 1e6:.2f} M"


def _clock(seconds: float) -> str:
    hours, minutes = int(seconds) // 3600, int(seconds) % 3600 // 60
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {int(seconds) % 60:02} s"
