"""What is chosen once for all notebooks of a JupyterLab: a run's name and its parameter file.

It holds as long as the server that started the kernels runs, for it is kept under that server's process.
"""

import json
import os
from pathlib import Path

import psutil

FILE = "outputs/.session.json"  # in the project folder


def choose(project: Path, **names: str) -> None:
    """Let the other kernels of this kernel's server know; where outputs/ cannot be written to, they do not."""
    path = project / FILE
    try:
        path.parent.mkdir(exist_ok=True)
        beside = path.with_suffix(".unfinished")
        beside.write_text(json.dumps({"server": _server(), **names}), encoding="utf-8")
        os.replace(beside, path)
    except OSError:  # whoever opens a stage says so
        pass


def chosen(project: Path) -> dict[str, str]:
    """What was chosen in a kernel of the same server; {} for nothing."""
    try:
        kept = json.loads((project / FILE).read_text(encoding="utf-8"))
        here = kept.pop("server") == _server()
        return {name: kept[name] for name in ("run_name", "params_file") if here and isinstance(kept[name], str)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _server() -> list[float]:
    """The process that started this one, and when it began itself: numbers of processes come again."""
    parent = os.getppid()
    return [parent, round(psutil.Process(parent).create_time(), 1)]
