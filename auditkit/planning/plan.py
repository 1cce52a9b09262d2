"""What a parameter file asks of a machine, before anything is downloaded: memory, calls, downloads, and time.

Everything follows from the parameters, the models' sizes (planning/sizes.py), formulas of their memory (planning/memory.py,
planning/placement.py) and the number of calls (planning/calls.py). A run that cannot fit is refused with the keys to change.

Of a device's memory 6 % are left for its context, libraries and pieces too small to be used (our choice). GB are 10^9
bytes, so that a card sold with 80 GB has a little more than the plan counts on.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from auditkit.errors import AuditError
from auditkit.params import Params
from auditkit.planning.calls import count_skills, model_calls, read_bench, stage_seconds
from auditkit.planning.pipeline_memory import PipelineWeight, picture_models
from auditkit.planning.placement import (
    PlacedModel,
    answering_bytes,
    grpo_bytes,
    memory_advice,
    memory_needs,
    needs_on_device,
    placed_models,
    repair_bytes,
)

RESERVE = 0.06  # share of the device's memory that is not planned with
GB = 1e9
NAMES = {4: "float32", 2: "16 bits"}


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


def this_machine(gpu: float | None, gpus: int | None, device: str = "auto") -> Machine:
    """The GPUs named, or else those found here unless `device` is the CPU, or else this machine's own memory.

    Raises AuditError for a GPU of no memory, or for no GPUs.
    """
    import torch

    if (gpu is not None and gpu <= 0) or (gpus is not None and gpus < 1):
        raise AuditError("--gpu is the memory of one GPU in GB, --gpus how many there are: both above 0.")
    if gpu is not None:
        return Machine("the GPU named", gpu * GB, gpus or 1, True)
    if torch.cuda.is_available() and device != "cpu":
        least = min(
            (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())),
            key=lambda device: device.total_memory,
        )
        return Machine(least.name, least.total_memory, gpus or torch.cuda.device_count(), True, _ram())
    ram = _ram()
    if ram is None:
        raise AuditError("no GPU is here, and how much memory there is cannot be told: name a GPU, as in --gpu 80.")
    return Machine("this machine without a GPU", ram, 1, False, ram)


def _ram() -> float | None:
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None


def plan_text(p: Params, here: Machine) -> str:
    """The plan as text.

    Raises AuditError as `models` does.
    """
    cast, many = placed_models(p, here.on_gpu), count_skills(p)
    beside = picture_models(p, here.on_gpu)
    lines = [f"{p.run_name}: {p.params_file}, for {here.devices} x {here.name}, {_bytes(here.size)}"]
    lines += ["", *_models_table(p, cast, beside), *_pictures(p), ""]
    lines += [*_memory_table(p, cast, beside, here), "", *_calls_table(p, cast, many, here)]
    return "\n".join(lines)


def refuse_misfit(p: Params, here: Machine) -> None:
    """Raise AuditError, naming the keys to change, if the run cannot fit."""
    cast, beside = placed_models(p, here.on_gpu), picture_models(p, here.on_gpu)
    for model in (*cast, *beside):
        if here.on_gpu and model.device.startswith("cuda:") and int(model.device[5:]) >= here.devices:
            raise AuditError(f'"{model.text}": there is no {model.device} among {here.devices} GPU(s); see --gpus.')
    processes = _processes([*cast, *beside], here)
    turns = p.memory == "turns" and here.on_gpu
    found = needs_on_device(memory_needs(p, cast, processes, beside), here.on_gpu)
    worst = max(found, key=lambda need: need.bytes(turns))
    most = worst.bytes(turns)
    if most > here.limit:
        sentence = (
            f"{worst.stage} takes {most / GB:.1f} GB, but {here.limit / GB:.1f} of the {here.size / GB:.0f} GB of "
            f"{here.name} can be planned with"
        )
        changes = memory_advice(p, here.on_gpu, here.limit, processes)
        if changes is None:
            raise AuditError(f"{sentence}; no setting makes it fit: name smaller models, or take a larger device.")
        words = ", ".join(f"{key}: {_yaml(value)}" for key, value in changes.items())
        raise AuditError(f"{sentence}; it fits with {words}.")
    parked = max(need.parked for need in found) if turns else 0
    if here.ram and parked > here.ram:
        raise AuditError(
            f"memory: turns keeps {parked / GB:.0f} GB of weights in CPU memory, but there are {here.ram / GB:.0f}; "
            f"give the largest references ?bits=4, which stay on the GPU."
        )


def _yaml(value) -> str:
    return f"[{', '.join(value)}]" if isinstance(value, list) else str(value)


def _processes(cast: Sequence[PlacedModel | PipelineWeight], here: Machine) -> int:
    """Copies of the run: one a GPU, unless the file itself deals its models out over the GPUs."""
    return 1 if any(m.device for m in cast) else here.devices


def _models_table(p: Params, cast: Sequence[PlacedModel], beside: Sequence[PipelineWeight]) -> list[str]:
    lines = [f"{'model':<38}{'as':<24}{'parameters':>11}{'in':>10}{'weights':>10}{'a batch':>10}{'download':>10}"]
    sources: dict[str, list[str]] = {}
    for m in cast:
        line = f"{m.spec.place if m.spec.engine != 'endpoint' else m.spec.name:<38}{', '.join(m.roles):<24}"
        if m.spec.engine == "endpoint":
            lines.append(f"{line}behind an address: takes nothing here")
            continue
        if m.size is None:
            lines.append(f"{line}{'unknown':>11}")
            continue
        load = _bytes(m.size.on_disk) if m.size.on_disk else "none"
        weights = _bytes(m.weights) if m.spec.engine == "transformers" else "vLLM's"
        options = ", ".join(f"{name}={value}" for name, value in m.spec.options.items())
        kind = f"{m.spec.options['bits']} bits" if m.stays else NAMES[m.e]
        batch = _bytes(answering_bytes(m, p)) if m.weights else ""
        line += f"{_number(m.size.parameters):>11}{kind:>10}{weights:>10}{batch:>10}{load:>10}   {options}"
        lines.append(line.rstrip())
        source = f"{m.size.note}, assuming {m.size.assumed}" if m.size.assumed else m.size.note
        sources.setdefault(source, []).append(m.spec.name)
    lines += [_weighed(p, weight) for weight in beside]
    lines.append("A batch: keys, values and activations of the answers to as many questions as are put at once.")
    total = sum(m.size.on_disk or 0 for m in cast if m.size) + sum(weight.on_disk for weight in beside)
    lines.append(f"To download: {_bytes(total) if total else 'nothing'}.")
    lines += [f"By {note}: {', '.join(names)}." for note, names in sources.items() if note != "its files"]
    unknown = [m.spec.place for m in cast if m.size is None and m.spec.engine != "endpoint"]
    if unknown := unknown + [weight.spec.place for weight in beside if weight.parts is None]:
        lines.append(
            f"Nothing is known here of {', '.join(unknown)}, and the hub does not answer: counted as nothing below. "
            "Ask again with a network, or name a folder that holds it."
        )
    if any(m.spec.engine == "vllm" for m in cast):
        lines.append("vLLM takes a share of the GPU for itself (?memory=), which is not counted below.")
    return lines


def _weighed(p: Params, weight: PipelineWeight) -> str:
    """A pipeline's line, or the picture check's, in the table of models."""
    roles = [
        name.replace("_", " ") for name in ("generator", "editor", "picture_check") if getattr(p, name) == weight.text
    ]
    line = f"{weight.spec.place:<38}{', '.join(roles):<24}"
    if weight.parts is None:
        return f"{line}{'unknown':>11}"
    load = _bytes(weight.on_disk) if weight.on_disk else "none"
    line += f"{_number(sum(n for n, _ in weight.parts.values())):>11}{NAMES[weight.e]:>10}{_bytes(weight.weights):>10}"
    options = ", ".join(f"{name}={value}" for name, value in weight.spec.options.items())
    return f"{line}{'':>10}{load:>10}   {options}".rstrip()


def _pictures(p: Params) -> list[str]:
    """What a data set of the hub would be to download; nothing where the pictures are here.

    Raises AuditError when the hub has no such data set.
    """
    if not p.images.startswith("hub:"):
        return []
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, RepositoryNotFoundError

    from auditkit.data.hf_dataset import parse_hub

    place = parse_hub(p.images)
    if Path(place.path).is_dir():
        return []
    try:
        info = HfApi().dataset_info(place.path, revision=place.options.get("revision"), files_metadata=True, timeout=10)
    except RepositoryNotFoundError as error:
        raise place.error("the hub has no such data set, or shows it only to those who are logged in.") from error
    except (HTTPError, OSError):
        return [f"How large the data set {place.path} is cannot be told, for the hub does not answer."]
    inside = f"/{place.options['config']}/" if "config" in place.options else "/"
    files = [file for file in info.siblings or [] if file.rfilename.endswith(".parquet")]
    total = sum(file.size or 0 for file in files if inside in f"/{file.rfilename}")
    return [f"Pictures to download: at most {_bytes(total)} of {place.path}; &limit=ROWS takes less."] if total else []


def _memory_table(p: Params, cast: Sequence[PlacedModel], beside: Sequence[PipelineWeight], here: Machine) -> list[str]:
    found, turned = (
        memory_needs(p, cast, _processes([*cast, *beside], here), beside),
        p.memory == "turns" and here.on_gpu,
    )
    place = "GPU" if here.on_gpu else "machine"
    lines = [f"{'memory of one ' + place:<24}{'together':>11}{'in turns':>11}   largest piece of work"]
    for need in found:
        where = f" {need.device}" if need.device else ""
        why = need.largest_in_turns if turned else need.largest
        lines.append(f"{need.stage + where:<24}{_bytes(need.together):>11}{_bytes(need.turns):>11}   {why}")
    for role, training in (("auditor", grpo_bytes), ("target", repair_bytes)):
        model = next(m for m in cast if role in m.roles)
        work, held = training(model, p, _processes(cast, here)) if role == "auditor" else training(model, p)
        if work:
            pieces = ", ".join(f"{what} {_bytes(size)}" for _, what, size in work)
            kept = "adapter, its gradients and moments" + (", pictures of a step" if role == "auditor" else "")
            lines.append(f"Training the {role}: {kept} {_bytes(held)}; then {pieces}.")
    limit = f"{_bytes(here.limit)} of {_bytes(here.size)} can be planned with."
    those = needs_on_device(found, here.on_gpu)
    together, turns = (max(getattr(n, how) for n in those) <= here.limit for how in ("together", "turns"))
    fit = (
        "All models fit together (memory: together)." if together else
        "They must take turns (memory: turns)." if turns else "They do not fit, not even in turns."
    )  # fmt: skip
    lines.append(f"{limit} {fit} The file says memory: {p.memory}.")
    if turned:
        lines.append(f"In turns, up to {_bytes(max(n.parked for n in found))} of weights wait in CPU memory.")
    if beside:
        lines.append(
            "Of the pipelines the weights are counted, with ?offload=model their largest part while they paint; what a "
            "picture takes while it is painted, its activations, is not."
        )
    if p.grpo_rollouts == "vllm_colocate":
        lines.append("What vLLM takes beside the auditor for its rollouts is not counted.")
    quantized = [f"{m.spec.name} ({m.spec.options['bits']} bits)" for m in cast if m.stays]
    lines.append(f"Quantized: {', '.join(quantized) if quantized else 'none; ?bits=4 behind a model asks for it'}.")
    return lines


def _calls_table(p: Params, cast: Sequence[PlacedModel], many: int | None, here: Machine) -> list[str]:
    bench, processes = read_bench(), _processes(cast, here)
    at_once = {"04_auditor": processes, "05_audit": p.workers if p.engine == "ray" else 1}
    times = stage_seconds(p, cast, many, bench) if bench else {}
    head = "".join(f"{name:>12}" for name in ("pictures", "auditor", "target", "references", "trained on", "painted"))
    lines = [f"{'calls at most':<18}{head}" + (f"{'time':>12}" if bench else "")]
    for row in model_calls(p, many):
        asked = (row["images"], row["auditor"], row["target"] + row["peer"], row["references"], row["trained"])
        asked += (row["painted"],)
        line = f"{row['stage']:<18}" + "".join(f"{n:>12,}" for n in asked)
        if bench:
            time = times[row["stage"]]
            line += f"{'unmeasured' if time is None else _clock(time / at_once.get(row['stage'], 1)):>12}"
        lines.append(line)
    lines.append(f"Each of the {len(p.references)} references is asked so often; a peer's calls are with the target's.")
    if many is None:
        lines.append("The benchmarks of a hub data set are not counted: how many there are shows once it is loaded.")
    if processes > 1:
        lines.append(f"04 is shared out over {processes} GPUs under accelerate launch; 05 over them takes engine: ray.")
    if bench:
        lines.append(f"Time at the rates of outputs/bench.json, measured on {bench['device']}.")
    else:
        lines.append("No time is estimated: `auditkit bench` on the GPU that is to run this measures the rates.")
    return lines


def _bytes(n: float) -> str:
    return f"{n / GB:.1f} GB" if n >= GB else f"{n / 1e6:.1f} MB"


def _number(n: int) -> str:
    return f"{n / 1e9:.2f} B" if n >= 1e9 else f"{n / 1e6:.2f} M"


def _clock(seconds: float) -> str:
    hours, minutes = int(seconds) // 3600, int(seconds) % 3600 // 60
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {int(seconds) % 60:02} s"
