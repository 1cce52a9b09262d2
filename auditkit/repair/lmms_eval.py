"""The paper's sixteen benchmarks through lmms-eval's own evaluator, before and after a repair.

Every model that `load_model` can load is asked in the same way: lmms-eval makes the prompts and scores the answers, and
`AnswerBook` has the model write them, so that every answer is on disk before it is scored and none is asked for
twice. Departures from lmms-eval's own model classes:
1) a question on several pictures gets them side by side in one, for our models look at one picture at a time;
2) a task that sets no length gets answers of up to 128 tokens;
3) answers are greedy: a task that wants them drawn at a temperature is refused.

lmms-eval is the extra `benchmarks`. Its 0.7.3 asks for wandb==0.25.0 and so for protobuf<7, where the tested set has
7.36.2: with constraints.txt pip falls back to the old 0.7. It asks for torchvision, too, which beside the CPU build of
torch breaks transformers' imports. Nothing done here needs either: `pip install --no-deps -r .ci/lmms.txt` puts
lmms-eval, with the few packages that it really imports, beside the tested torch 2.13, transformers 5.23 and datasets
5.2, and there tests/test_lmms.py runs. With protobuf's line taken out of constraints.txt, pip resolves the whole extra
(a dry run, with torchvision 0.28): that is for a machine with CUDA, in an environment of its own, and was not tested.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import inspect
import io
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from PIL import Image

from auditkit import stats
from auditkit.data.source import Picture
from auditkit.errors import AuditError
from auditkit.models.answers import AnswerBook
from auditkit.models.base import Writer
from auditkit.models.load import load_model
from auditkit.repair.paper import BENCHMARKS, Benchmark
from auditkit.runs.files import read_json, write_json
from auditkit.text import nearest, p_value, short_error, text_table, with_interval

INSTALL = "pip install --no-deps -r .ci/lmms.txt"  # in the project's folder
ANSWER_TOKENS = 128  # where a task sets no length
SAID_EVERY = 30  # seconds


def evaluate_tasks(
    model: Writer,
    tasks: Sequence[str],
    folder: str | Path,
    identity: str | None = None,
    limit: int | None = None,
    include: str | Path | None = None,
) -> dict[str, dict]:
    """Put a model through tasks of lmms-eval. What is done is kept in `folder` and not done again.

    A task that fails does not stop those after it.

    Args:
        tasks: names of BENCHMARKS, or of any task of lmms-eval or of `include` that lets a model write.
        folder: gets TASK.json for each finished task, with each answer's score, and before that every answer.
        identity: stands for the model's weights; default: its name. Results of another one are refused.
        limit: the first so many questions of each task; None: all.
        include: a folder of further tasks in lmms-eval's YAML format.

    Returns {task: {"model", "task", "metric", "value", "n", "limit", "lmms_eval", "scores": [float, ...] or None}}, the
    value in lmms-eval's own unit. There are scores where the value is their mean, which is what pairs can be made of. A
    task that failed has instead of these a "trouble", one sentence.

    Raises AuditError without lmms-eval, for an unknown task, a folder that holds another model's results, and where not
    one task could be finished.
    """
    manager = _manager(include)
    names = {name: _task(name, manager) for name in tasks}
    done = {}
    for name, task in names.items():
        file = Path(folder) / f"{task}.json"
        told = {"model": identity or model.name, "task": task, "limit": limit}
        if file.exists():
            found = read_json(file, advice="delete it, and that benchmark is done again")
            if differs := [key for key in told if found.get(key) != told[key]]:
                key = differs[0]
                raise AuditError(f"{file} is of {key} {found.get(key)}, not {told[key]}; give another --out.")
        else:
            metric = BENCHMARKS[name].metric if name in BENCHMARKS else None
            whose = hashlib.sha256((identity or model.name).encode()).hexdigest()[:12]
            book = AnswerBook(file.with_name(f"{task}.{whose}.answers.jsonl"))
            try:
                found = told | _one(model, task, metric, book, limit, manager)
            except AuditError as error:
                done[name] = told | {"trouble": str(error)}
                continue
            write_json(file, found, indent=None)
        done[name] = found
    if troubles := [found["trouble"] for found in done.values() if "trouble" in found]:
        if len(troubles) == len(done):
            raise AuditError(troubles[0])
    return done


def paper_table(before: dict[str, dict], after: dict[str, dict] | None = None) -> list[dict]:
    """Rows of before, after and the paper's own figures, in the paper's unit.

    Returns rows {"benchmark", "n", "before": rate, "after"?: rate, "change"?: paired difference, "p_holm"?: exact
    McNemar where all answers are right or wrong, corrected for the number of such benchmarks, "paper"?: Benchmark}. A
    value that is no mean over answers (MME, CIDEr, F1, a mean over categories) has no "low" and "high", and no change.
    A benchmark that failed has only {"benchmark", "trouble"}.
    """
    rows, tests = [], []
    for name, first in before.items():
        paper = BENCHMARKS.get(name)
        scale = paper.scale if paper else 100.0
        if trouble := first.get("trouble") or (after or {}).get(name, {}).get("trouble"):
            rows.append({"benchmark": paper.title if paper else name, "trouble": trouble})
            continue
        row = {"benchmark": paper.title if paper else name, "n": first["n"], "before": _rate(first, scale)}
        row |= {"paper": paper} if paper else {}
        if after is not None:
            second = after[name]
            row["after"] = _rate(second, scale)
            pair = first["scores"], second["scores"]
            if all(pair) and first["keys"] == second["keys"]:
                row["change"] = _scaled(stats.difference(*pair), scale)
                if {*pair[0], *pair[1]} <= {0.0, 1.0}:
                    tests.append((row, stats.mcnemar(*pair)["p"]))
        rows.append(row)
    for (row, _), p in zip(tests, stats.holm([p for _, p in tests]), strict=True):
        row["p_holm"] = p
    return rows


def compare_benchmarks(
    spec: str,
    adapter: str | Path | None,
    tasks: Sequence[str],
    folder: str | Path,
    limit: int | None = None,
    include: str | Path | None = None,
) -> list[dict]:
    """Load a model, put it through the tasks, do so again with the adapter, and return `paper_table`'s rows.

    The arguments are those of `load_model` and `evaluate_tasks`; results are kept in folder/before and folder/after.
    """
    manager = _manager(include)
    for name in tasks:  # all of them before the first is run
        _task(name, manager)
    scores = []
    for part, added in (("before", None), ("after", adapter))[: 1 if adapter is None else 2]:
        model = load_model(spec, adapter=added)
        identity = spec if added is None else f"{spec} + {added} ({_digest(added)})"
        print(f"{part}: {model.name}", flush=True)
        scores.append(evaluate_tasks(model, tasks, Path(folder) / part, identity, limit, include))
        del model  # its place is for the next one
    return paper_table(*scores)


def table_text(rows: Sequence[dict]) -> str:
    """The table of `paper_table`'s rows as lines to print, with the notes of the benchmarks below."""
    heads = ["benchmark", "n", "before", "after", "change", "p (Holm)"]
    heads += ["paper 3B/4B", "+AuditDM", "10B/12B", "28B/27B"]
    lines, notes = [heads], []
    for row in rows:
        if "trouble" in row:
            notes.append(f"{row['benchmark']} is not done: {row['trouble']}")
            continue
        paper: Benchmark | None = row.get("paper")
        theirs = [paper.base, paper.audited, paper.larger, paper.largest] if paper else []
        p = p_value(row["p_holm"]) if "p_holm" in row else ""
        ours = [with_interval(row[key], scale=1) if key in row else "" for key in ("before", "after", "change")]
        cells = [row["benchmark"], f"{row['n']:,}", *ours, p]
        lines.append(cells + ([f"{value:.1f}" for value in theirs] or [""] * 4))
        if paper and paper.note:
            notes.append(f"{paper.title}: {paper.task}, {paper.note}.")
    used = [i for i in range(len(heads)) if any(line[i] for line in lines[1:])]
    heads, *lines = [[line[i] for i in used] for line in lines]
    return "\n".join([text_table(heads, lines), "", *notes]).rstrip()


def _digest(adapter: str | Path) -> str:
    """Stands for an adapter's weights, so that one trained anew in the same folder is not taken for the old one."""
    whole = hashlib.sha256()
    for file in sorted(file for name in ("adapter_model.*", "model*.safetensors") for file in Path(adapter).glob(name)):
        whole.update(file.read_bytes())
    return whole.hexdigest()[:12]


@functools.lru_cache(maxsize=4)
def _manager(include: str | Path | None):
    """lmms-eval's index of tasks, its own and those of a folder; it takes seconds to make."""
    try:
        import lmms_eval.evaluator
        from lmms_eval.tasks import TaskManager
    except ImportError as error:
        raise AuditError(f"the benchmarks need lmms-eval ({error}): {INSTALL}.") from error
    if include is not None and not Path(include).is_dir():
        raise AuditError(f"--include {include}: there is no such folder of tasks.")
    lmms_eval.evaluator.eval_logger.disable("lmms_eval")  # what matters is raised
    return TaskManager("ERROR", include_path=None if include is None else str(include))


def _task(name: str, manager) -> str:
    """lmms-eval's own name of a task."""
    task = BENCHMARKS[name].task if name in BENCHMARKS else name
    if task not in manager.all_subtasks:
        near = nearest(name, [*BENCHMARKS, *manager.all_subtasks])
        hint = f"did you mean {near}?" if near else f"there are {', '.join(BENCHMARKS)}, and lmms-eval's own tasks."
        raise AuditError(f'no benchmark "{name}"; {hint}')
    return task


def _one(model: Writer, name: str, metric: str | None, book: AnswerBook, limit: int | None, manager) -> dict:
    """The result of one task, as `evaluate_tasks` returns it."""
    from lmms_eval import evaluator, tasks, utils

    said = sys.stdout
    with contextlib.redirect_stdout(io.StringIO()):  # many tasks print what they also return
        try:
            task = tasks.get_task_dict([name], manager)[name]
        except ImportError as error:  # of a task's own scorer
            raise AuditError(f'"{name}" needs a package that is not here ({error}); pip install it.') from error
        except Exception as error:  # whatever stops `datasets`, the hub or a task's own preparation
            last = getattr(error, "last_attempt", None)  # lmms-eval tries five times
            cause = last.exception() if last is not None else error
            raise AuditError(
                f'the data of "{name}" could not be loaded ({short_error(cause)}); lmms-eval fetches them from the '
                "Hugging Face hub, which needs a network once, and for some data sets an account (HF_TOKEN)."
            ) from cause
        if task.OUTPUT_TYPE != "generate_until":
            raise AuditError(f'"{name}" does not let a model write ({task.OUTPUT_TYPE}), so it cannot be run here.')
        arguments = argparse.Namespace(output_path=str(book.path.parent), process_with_media=True)
        try:
            results = evaluator.simple_evaluate(
                _asked(model, book, said),
                tasks=[task],
                limit=limit,
                bootstrap_iters=0,
                verbosity="ERROR",
                task_manager=manager,
                cli_args=arguments,
            )
        except AuditError:
            raise
        except Exception as error:  # a task's own code: a scorer that lacks Java or a package, a picture not fetched
            raise AuditError(
                f'"{name}" could not be finished ({type(error).__name__}: {short_error(error)}); the answers given so '
                "far are kept and will not be asked for again."
            ) from error
        metric = metric or task.config.metric_list[0]["metric"]
        samples = [sample for sample in results["samples"][name] if metric in sample]
        counted = [_score(sample[metric], task.aggregation()[metric]) for sample in samples]
    values = {key.split(",")[0]: value for key, value in results["results"][name].items()}
    if not samples or not isinstance(values.get(metric), (int, float)) or math.isnan(values[metric]):
        raise AuditError(f'"{name}" gave no {metric} on these questions; raise --limit.')
    known = [score for score in counted if score is not None]
    are_averaged = len(known) == len(counted) and math.isclose(sum(known) / len(known), values[metric], abs_tol=1e-4)
    version, keys = utils.get_lmms_eval_version_string(), [sample["doc_id"] for sample in samples]
    found = {"metric": metric, "value": values[metric], "n": len(samples), "scores": known if are_averaged else None}
    return found | {"keys": keys, "lmms_eval": version, "answers": [sample["filtered_resps"] for sample in samples]}


def _score(value, aggregate) -> float | None:
    """One answer's score: a number as it is; else what the task's own aggregation makes of this answer alone."""
    if isinstance(value, (bool, int, float)):
        return float(value)
    if "args" in inspect.signature(aggregate).parameters:
        return None  # it writes a file rather than just counts
    try:
        return float(aggregate([value]))
    except Exception:  # some cannot count a single answer: MME's come in pairs
        return None


def _asked(model: Writer, book: AnswerBook, said):
    """A model of ours as one of lmms-eval's; `said` is where progress is printed."""
    from lmms_eval.api.model import lmms

    class Asked(lmms):
        def generate_until(self, requests: list) -> list[str]:
            texts, shown = [""] * len(requests), time.monotonic()
            alike: dict[int, list[int]] = {}  # requests that one call can answer, by the length of the answers
            for i, request in enumerate(requests):
                how = request.args[1]
                if how.get("temperature"):
                    raise AuditError(f'"{request.task_name}" wants its answers drawn at random; only greedy ones are.')
                alike.setdefault(int(how.get("max_new_tokens", ANSWER_TOKENS)), []).append(i)
            count = 0
            for length, members in alike.items():
                while members:
                    rows, members = members[: 4 * model.batch_size], members[4 * model.batch_size :]
                    pictures = [self._picture(requests[i]) for i in rows]
                    prompts = [requests[i].args[0].replace("<image>", "").strip() for i in rows]
                    with contextlib.redirect_stdout(said):
                        written = book.ask(model, pictures, prompts, length)
                    for i, text in zip(rows, written, strict=True):
                        texts[i] = _until(text, requests[i].args[1].get("until"))
                    count += len(rows)
                    if time.monotonic() - shown > SAID_EVERY:
                        shown = time.monotonic()
                        print(f"  {requests[0].task_name}: {count:,} of {len(requests):,}", file=said, flush=True)
            return texts

        def _picture(self, request) -> Picture:
            _, _, look, number, task, split = request.args
            rows = self.task_dict[task][split]
            # of a question without a picture it reads None, which a model takes for no image
            read = cast(Callable[[], Image.Image], lambda: _side_by_side(look(rows[number]) or []))
            return Picture(f"{split}/{number}", read)

        def loglikelihood(self, requests: list) -> list[tuple[float, bool]]:
            raise NotImplementedError("our models write; they are not asked how likely a text is")

        def generate_until_multi_round(self, requests: list) -> list[str]:
            raise NotImplementedError("our models answer one question at a time")

        def clean(self) -> None:
            """The model is the caller's, and is asked again."""

    return Asked()


def _until(text: str, stops: str | list[str] | None) -> str:
    """A text up to the first of the marks at which a task wants it to end.

    >>> _until("a cat ASSISTANT: no", ["ASSISTANT:"])
    'a cat'
    """
    for stop in [stops] if isinstance(stops, str) else stops or []:
        if stop:
            text = text.split(stop)[0]
    return text.strip()


def _side_by_side(pictures: list) -> Image.Image | None:
    """One picture out of several, all at the height of the highest; None out of none."""
    if other := [picture for picture in pictures if not isinstance(picture, Image.Image)]:
        raise AuditError(f"a task shows its models a {type(other[0]).__name__}; only tasks with pictures can be run.")
    if len(pictures) < 2:
        return pictures[0].convert("RGB") if pictures else None
    height = max(picture.height for picture in pictures)
    scaled = [p.convert("RGB").resize((max(1, round(p.width * height / p.height)), height)) for p in pictures]
    whole, left = Image.new("RGB", (sum(p.width for p in scaled), height)), 0
    for picture in scaled:
        whole.paste(picture, (left, 0))
        left += picture.width
    return whole


def _rate(result: dict, scale: float) -> dict:
    """A result in the paper's unit, with its interval where it is a mean over answers."""
    scores = result["scores"]
    if not scores:
        return {"value": result["value"] * scale, "n": result["n"]}
    if set(scores) <= {0.0, 1.0}:
        return _scaled(stats.rate(int(sum(scores)), len(scores)), scale)
    found = stats.difference([0.0] * len(scores), scores)
    return _scaled(found | {"low": max(found["low"], min(0.0, *scores))}, scale)  # no score is below 0


def _scaled(rate: dict, scale: float) -> dict:
    return {key: value if key == "n" else value * scale for key, value in rate.items()}
