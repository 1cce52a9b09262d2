"""Trackers of a training: TensorBoard, Trackio or Weights & Biases beside the run's own history.jsonl, where one asks.

Transformers' trainer does the reporting; here stands only where the logs lie, in the stage's folder, and what they are
called. Nothing of it reaches a record: a run has the same figures with and without a tracker.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from auditkit.errors import AuditError
from auditkit.params import Params

PROJECT = "auditkit"
LOGS = "logs"  # in a stage's folder


def refuse_missing_trackers(p: Params) -> None:
    """Raise AuditError for a tracker of report_to whose package is not installed, naming the extra."""
    for name in p.report_to:
        if importlib.util.find_spec(name) is None:
            raise AuditError(f'report_to: {name} is not installed: pip install "auditkit[{name}]", or leave it out.')


def trackio_folder(p: Params, stage: Path) -> dict[str, str]:
    """The environment variable by which Trackio logs into a stage's folder; {} where it is not asked for.

    Trackio reads it when it is imported, and TRL imports it where it is installed: it is set before a kernel starts.
    """
    return {"TRACKIO_DIR": str(stage / LOGS)} if "trackio" in p.report_to else {}


def reporting(p: Params, stage: Path) -> dict:
    """What the configuration of a trainer says of trackers: {"report_to", "run_name", "project"}.

    Args:
        p: uses report_to and run_name.
        stage: the stage's folder, whose name tells its run apart from those of other stages.

    Raises AuditError as `refuse_missing_trackers` does.
    """
    refuse_missing_trackers(p)
    return {"report_to": list(p.report_to) or "none", "run_name": f"{p.run_name}-{stage.name}", "project": PROJECT}


@contextmanager
def logging_into(p: Params, stage: Path) -> Iterator[None]:
    """While it lasts, trackers that are made and begin to log do so in the folder `logs` of a stage.

    What a person has set in the environment stays: WANDB_DIR, WANDB_PROJECT, TENSORBOARD_LOGGING_DIR. Where Trackio was
    imported before it could be told (a notebook by hand), a sentence says where it logs.
    """
    folder = (stage / LOGS).absolute()
    wanted: dict[str, str] = {}
    if "tensorboard" in p.report_to:
        wanted["TENSORBOARD_LOGGING_DIR"] = str(folder)
    if "wandb" in p.report_to:
        folder.mkdir(parents=True, exist_ok=True)
        wanted |= {"WANDB_DIR": str(folder), "WANDB_PROJECT": PROJECT}
    if "trackio" in p.report_to:
        from trackio.utils import TRACKIO_DIR

        if Path(TRACKIO_DIR).absolute() != folder:
            print(f"trackio logs to {TRACKIO_DIR}; set TRACKIO_DIR before the kernel starts for another folder.")
    new = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)
