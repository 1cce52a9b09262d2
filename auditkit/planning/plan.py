"""What a parameter file asks of a machine, before anything is downloaded: memory, calls, downloads, and time.

Everything follows from the parameters, the models' sizes (sizes.py), formulas of their memory (memory.py, placement.py)
and the number of calls (calls.py). A run that cannot fit is refused with the keys to change.

Of a device's memory 6 % are left for its context, libraries and pieces too small to be used (our choice). GB are 10^9
bytes, so that a card sold with 80 GB has a little more than the plan counts on.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from auditkit.errors import AuditError
from auditkit.params import Params
from auditkit.planning.calls import (
    answer_operations,
    at_hand,
    model_calls,
    questions_an_image,
    read_bench,
    stage_seconds,
)
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
from auditkit.specs import Spec
from auditkit.text import byte_size, duration, large_number, text_table, yaml_text

RESERVE = 0.06  # share of the device's memory that is not planned with
GB = 1e9
MOST = 100_000  # GB of a GPU, and GPUs
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

    if not 0 < (1 if gpu is None else gpu) <= MOST or not 0 < (1 if gpus is None else gpus) <= MOST:  # nan is not
        raise AuditError(f"--gpu is the memory of one GPU in GB, --gpus how many there are: above 0, at most {MOST:,}.")
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
    """The plan as text, for as many pictures as there are.

    Raises AuditError as `models` does.
    """
    p, many = at_hand(p)
    cast = placed_models(p, here.on_gpu)
    beside = picture_models(p, here.on_gpu)
    lines = [f"{p.run_name}: {p.params_file}, for {here.devices} x {here.name}, {byte_size(here.size)}"]
    lines += ["", *_models_table(p, cast, beside), *_pictures(p), ""]
    lines += [*_memory_table(p, cast, beside, here), "", *_sharing_table(p, cast)]
    lines += ["", *_calls_table(p, cast, many, here)]
    if unknown := _unknown(cast, beside):
        lines.append(f"This plan is without {', '.join(unknown)}, of which nothing is known here.")
    return "\n".join(lines)


def refuse_misfit(p: Params, here: Machine) -> None:
    """Raise AuditError, naming the keys to change, if the run cannot fit."""
    cast, beside = placed_models(p, here.on_gpu), picture_models(p, here.on_gpu)
    models: list[PlacedModel | PipelineWeight] = [*cast, *beside]
    for model in models:
        if here.on_gpu and model.device.startswith("cuda:") and int(model.device[5:]) >= here.devices:
            raise AuditError(f'"{model.text}": there is no {model.device} among {here.devices} GPU(s); see --gpus.')
    processes = _processes(models, here)
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
        words = ", ".join(f"{key}: {yaml_text(value)}" for key, value in changes.items())
        raise AuditError(f"{sentence}; it fits with {words}.")
    parked = max(need.parked for need in found) if turns else 0
    if here.ram and parked > here.ram:
        raise AuditError(
            f"memory: turns keeps {parked / GB:.0f} GB of weights in CPU memory, but there are {here.ram / GB:.0f}; "
            f"give the largest references ?bits=4, which stay on the GPU."
        )


def _processes(cast: Sequence[PlacedModel | PipelineWeight], here: Machine) -> int:
    """Copies of the run: one a GPU, unless the file itself deals its models out over the GPUs."""
    return 1 if any(m.device for m in cast) else here.devices


def _unknown(cast: Sequence[PlacedModel], beside: Sequence[PipelineWeight]) -> list[str]:
    """Models of whose size nothing is known here, so that they count as nothing."""
    models = [model.spec.place for model in cast if model.size is None and model.spec.engine != "endpoint"]
    return models + [weight.spec.place for weight in beside if weight.parts is None]


def _models_table(p: Params, cast: Sequence[PlacedModel], beside: Sequence[PipelineWeight]) -> list[str]:
    header = ["model", "as", "parameters", "in", "weights", "a batch", "download", ""]
    rows = []
    sources: dict[str, list[str]] = {}
    for m in cast:
        roles = ", ".join(m.roles)
        if m.spec.engine == "endpoint":
            rows.append([m.spec.name, roles, *[""] * 5, "behind an address: takes nothing here"])
            continue
        if m.size is None:
            rows.append([m.spec.place, roles, "unknown", *[""] * 5])
            continue
        rows.append([
            m.spec.place,
            roles,
            large_number(m.size.parameters),
            f"{m.spec.options['bits']} bits" if m.stays else NAMES[m.e],
            byte_size(m.weights) if m.spec.engine == "transformers" else "vLLM's",
            byte_size(answering_bytes(m, p)) if m.weights else "",
            byte_size(m.size.on_disk) if m.size.on_disk else "none",
            _options(m.spec),
        ])  # fmt: skip
        source = f"{m.size.note}, assuming {m.size.assumed}" if m.size.assumed else m.size.note
        sources.setdefault(source, []).append(m.spec.name)
    rows += [_weighed(p, weight) for weight in beside]
    lines = [text_table(header, rows, "llrrrrrl")]
    lines.append("A batch: keys, values and activations of the answers to as many questions as are put at once.")
    total = sum(m.size.on_disk or 0 for m in cast if m.size) + sum(weight.on_disk for weight in beside)
    unknown = _unknown(cast, beside)
    but = f", but for {', '.join(unknown)}" if unknown else ""
    lines.append(f"To download: {byte_size(total) if total else 'nothing'}{but}.")
    lines += [f"By {note}: {', '.join(names)}." for note, names in sources.items() if note != "its files"]
    if unknown:
        lines.append(
            f"Nothing is known here of {', '.join(unknown)}, and the hub does not answer: counted as nothing below. "
            "Ask again with a network, or name a folder that holds it."
        )
    if any(m.spec.engine == "vllm" for m in cast):
        lines.append("vLLM takes a share of the GPU for itself (?memory=), which is not counted below.")
    return lines


def _weighed(p: Params, weight: PipelineWeight) -> list[str]:
    """A pipeline's row, or the picture check's, in the table of models."""
    roles = [
        name.replace("_", " ") for name in ("generator", "editor", "picture_check") if getattr(p, name) == weight.text
    ]
    row = [weight.spec.place, ", ".join(roles)]
    if weight.parts is None:
        return [*row, "unknown", *[""] * 5]
    row += [large_number(sum(n for n, _ in weight.parts.values())), NAMES[weight.e], byte_size(weight.weights), ""]
    return [*row, byte_size(weight.on_disk) if weight.on_disk else "none", _options(weight.spec)]


def _options(spec: Spec) -> str:
    return ", ".join(f"{name}={value}" for name, value in spec.options.items())


def _pictures(p: Params) -> list[str]:
    """What a data set of the hub would be to download; nothing where the pictures are here.

    Raises AuditError when the hub has no such data set.
    """
    if not p.images.startswith("hub:"):
        return []
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, RepositoryNotFoundError

    from auditkit.data.hf_dataset import local_folder, parse_hub

    place = parse_hub(p.images)
    if local_folder(place.path) is not None:
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
    return (
        [f"Pictures to download: at most {byte_size(total)} of {place.path}; &limit=ROWS takes less."] if total else []
    )


def _memory_table(p: Params, cast: Sequence[PlacedModel], beside: Sequence[PipelineWeight], here: Machine) -> list[str]:
    found, turned = (
        memory_needs(p, cast, _processes([*cast, *beside], here), beside),
        p.memory == "turns" and here.on_gpu,
    )
    place = "GPU" if here.on_gpu else "machine"
    rows = []
    for need in found:
        where = f" {need.device}" if need.device else ""
        why = need.largest_in_turns if turned else need.largest
        rows.append([need.stage + where, byte_size(need.together), byte_size(need.turns), why])
    lines = [text_table([f"memory of one {place}", "together", "in turns", "largest piece of work"], rows, "lrrl")]
    for role in ("auditor", "target"):
        model = next(m for m in cast if role in m.roles)
        work, held = grpo_bytes(model, p, _processes(cast, here)) if role == "auditor" else repair_bytes(model, p)
        if work:
            pieces = ", ".join(f"{what} {byte_size(size)}" for _, what, size in work)
            kept = "adapter, its gradients and moments" + (", pictures of a step" if role == "auditor" else "")
            lines.append(f"Training the {role}: {kept} {byte_size(held)}; then {pieces}.")
    limit = f"{byte_size(here.limit)} of {byte_size(here.size)} can be planned with."
    those = needs_on_device(found, here.on_gpu)
    together, turns = (max(getattr(n, how) for n in those) <= here.limit for how in ("together", "turns"))
    fit = (
        "All models fit together (memory: together)." if together else
        "They must take turns (memory: turns)." if turns else "They do not fit, not even in turns."
    )  # fmt: skip
    lines.append(f"{limit} {fit} The file says memory: {p.memory}.")
    if turned:
        lines.append(f"In turns, up to {byte_size(max(n.parked for n in found))} of weights wait in CPU memory.")
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


def _sharing_table(p: Params, cast: Sequence[PlacedModel]) -> list[str]:
    """Operations of an answer with one question an image and with GRPO's, and why a model's rows share nothing."""
    n = min(p.group_size, p.batch_size)
    rows = []
    for m in cast:
        if m.size is None or m.spec.engine != "transformers":
            continue
        one, each = answer_operations(m, p), answer_operations(m, p, n)
        why = m.size.unshared
        if not why and m.size.window and m.prompt(p.max_question_tokens) + p.max_answer_tokens > m.size.window:
            why = f"some of its layers see {m.size.window} tokens, fewer than the text has"
        how = "only the image's encoding is shared" if m.size.features else "each row is read whole"
        words = f"{how}, for {why}" if why else ""
        rows.append([m.spec.name, f"{one / 1e12:.2f}", f"{each / 1e12:.2f}", f"{each / one:.0%}", words])
    if not rows:
        return ["Models that others run share images by their own means."]
    header = ["operations of an answer, 10^12", "one question an image", f"{n} questions", "of it", ""]
    many = ", ".join(f"{what} {rows}" for what, rows in questions_an_image(p).items())
    return [
        text_table(header, rows, "lrrrl"),
        f"Rows of a batch about one image, at most: {many or 'one everywhere'}; elsewhere one.",
        "A shared cache is repeated for its rows and takes no more than theirs; the memory above is of whole rows.",
    ]


def _calls_table(p: Params, cast: Sequence[PlacedModel], many: int | None, here: Machine) -> list[str]:
    bench, processes = read_bench(), _processes(cast, here)
    at_once = {"04_auditor": processes, "05_audit": p.workers if p.engine == "ray" else 1}
    times = stage_seconds(p, cast, many, bench) if bench else {}
    header = ["calls at most", "pictures", "auditor", "target", "references", "trained on", "painted"]
    rows = []
    for row in model_calls(p, many):
        asked = (row["images"], row["auditor"], row["target"] + row["peer"], row["references"], row["trained"])
        cells = [row["stage"], *(f"{n:,}" for n in (*asked, row["painted"]))]
        if bench:
            time = times[row["stage"]]
            cells.append("unmeasured" if time is None else duration(time / at_once.get(row["stage"], 1)))
        rows.append(cells)
    lines = [text_table(header + (["time"] if bench else []), rows)]
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
