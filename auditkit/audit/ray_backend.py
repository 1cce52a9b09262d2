"""The audit's batches on many GPUs and machines: one Ray Data job, each of whose workers holds a set of models.

    engine: ray
    workers: 8          one GPU each, where there are any

What a batch holds is decided by audit/loop.py, as for a local run, and a worker does with it what the local run does.
So the records are the same, whichever worker made them and in whatever order they came; what has come is saved at once,
and a kill loses no more than the batches under way. Without a cluster one is started on this machine; the variable
RAY_ADDRESS names another, whose machines need auditkit and the project's folder at the same place (a shared file
system).
"""

import json
import logging
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from auditkit.data.load import load_images
from auditkit.data.source import Picture, Source
from auditkit.errors import AuditError
from auditkit.models.answers import AnswerBook
from auditkit.params import Params
from auditkit.runs import jsonl


def each_batch(todo: Sequence[dict], work: Callable, p: Params, book: AnswerBook | None = None) -> Iterator[dict]:
    """What `work` (WriteProbes or AnswerProbes) makes of each batch, in the order in which they are done.

    Args:
        todo: the batches, plain enough for JSON.
        work: is copied to every worker, where it loads its models.
        p: uses workers, device and images.
        book: the answers so far, and where new ones are filed before they are handed on.

    Raises AuditError when ray is not installed, when no cluster answers or it is too small, and for what a worker
    raises as one.
    """
    if not todo:
        return
    ray = _imported()
    begun = _start(ray)
    try:
        gpus = _gpus_a_worker(ray.cluster_resources(), p)
        known = jsonl.read(book.path) if book else []
        rows = [{"batch": json.dumps(batch | _answers_to(batch, known))} for batch in todo]
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _Worker,
            fn_constructor_args=[work, p, os.getcwd(), book is not None],
            # one batch at a time: a second one waiting would be lost with it, or wait while another worker is free
            compute=ray.data.ActorPoolStrategy(size=min(p.workers, len(rows)), max_tasks_in_flight_per_actor=1),
            num_cpus=1,
            num_gpus=gpus,
        )
        # nothing ahead, since to look ahead is to hold back what has come until the next one has
        for block in done.iter_batches(batch_size=None, prefetch_batches=0):
            for text in block["done"]:
                result = json.loads(text)
                if book:
                    jsonl.append(book.path, result.pop("answers"))
                if "error" in result:
                    raise AuditError(result["error"])
                yield result
    finally:
        if begun:
            ray.shutdown()


class _Worker:
    """One of the processes that Ray starts: a copy of the work, and the pictures by their keys."""

    def __init__(self, work: Callable, p: Params, folder: str, answers: bool):
        self.work, self.p, self.folder, self.answers = work, p, folder, answers
        self.source: Source | None = None

    def __call__(self, row: dict) -> dict:
        """The result of a batch, its new answers beside it, as JSON: Arrow would make all rows' keys the same.

        What the user can put right comes back as a sentence, since Ray would wrap the exception in a traceback.
        """
        batch = json.loads(row["batch"])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "answers.jsonl")
            known = batch.pop("known", [])
            jsonl.append(path, known)
            try:
                done = self.work(batch, self._picture, *([AnswerBook(path)] if self.answers else []))
            except AuditError as error:
                done = {"error": str(error)}
            return {"done": json.dumps(done | {"answers": jsonl.read(path)[len(known) :]})}

    def _picture(self, key: str) -> Picture:
        if self.source is None:
            if not os.path.isdir(self.folder):
                raise AuditError(
                    f"engine: ray: the machine {os.uname().nodename} has no folder {self.folder}, where the audit was "
                    "started; all machines of the cluster need the project at one place."
                )
            os.chdir(self.folder)
            self.source = load_images(self.p.images)
        return self.source.picture(key)


def _answers_to(batch: dict, known: Sequence[dict]) -> dict:
    """The answers on file about a batch's pictures, which are not asked for again."""
    pictures = {probe[name] for probe in batch.get("probes", []) for name in ("picture", "base")}
    there = [row for row in known if row["picture"] in pictures]
    return {"known": there} if there else {}


def _imported():
    try:
        import ray
        import ray.data
    except ImportError:
        raise AuditError("engine: ray needs one more package: pip install auditkit[ray]") from None
    return ray


def _start(ray) -> bool:
    """Connect to the cluster of RAY_ADDRESS, or start one here; False if this process is connected already."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what is to come, and no warning that it comes
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters is raised
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        if place := re.search(r"([^/@]+):(\d+)$", address):  # Ray itself would go on trying for a quarter of an hour
            socket.create_connection((place[1].strip("[]"), int(place[2])), timeout=10).close()
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (OSError, ValueError, RuntimeError) as error:  # a ConnectionError is an OSError
        why = "with RAY_AUTH_MODE=token, if the cluster wants one" if "oken" in f"{error}{error.__cause__}" else ""
        where = f"cannot join the cluster at RAY_ADDRESS={address}" if address else "Ray could not be started here"
        raise AuditError(f"engine: ray: {where} ({why or str(error).strip().splitlines()[0]}).") from error
    return True


def _gpus_a_worker(cluster: dict, p: Params) -> int:
    """1 where the models belong on GPUs, else 0. Raises AuditError when the cluster has too few for all workers."""
    gpus = int(p.device.startswith("cuda") or (p.device == "auto" and cluster.get("GPU", 0) > 0))
    kind = "GPU" if gpus else "CPU"
    if (there := int(cluster.get(kind, 0))) < p.workers:
        raise AuditError(
            f"workers: {p.workers} need one {kind} each, but the Ray cluster has {there}; "
            "lower workers or add machines."
        )
    return gpus
