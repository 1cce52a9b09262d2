"""Which notebook runs when: one after another, or each as soon as those it builds on are done.

With one job at a time notebooks go by their numbers. With more, 01 to 04 go beside each other, for none builds on
another, and so do 06 and 07; and what 07 and 08 will ask that no training changes (repair/ahead.py) is asked while the
auditor learns. What others wait for longest comes first. Each writes to its own stage's folder alone, so the records
are those of one after another.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass

AHEAD = "_ahead"  # behind the name of a stage: what it will ask, asked before
WAITS = {  # task -> what it builds on; the most urgent first
    "00_setup": (),
    "04_auditor": ("00_setup",),
    "05_audit": ("02_disagreement", "04_auditor"),
    "07_rectify": ("05_audit", "07_rectify" + AHEAD),
    "08_benchmark": ("06_findings", "07_rectify", "08_benchmark" + AHEAD),
    "02_disagreement": ("00_setup",),
    "06_findings": ("05_audit",),
    "01_models": ("00_setup",),
    "03_counterfactual": ("00_setup",),
    "07_rectify" + AHEAD: ("00_setup",),
    "08_benchmark" + AHEAD: ("00_setup",),
}
MOST = 6  # of these can go at once: 01 to 04, and what 07 and 08 ask ahead


@dataclass(frozen=True)
class Task:
    """A notebook to run."""

    name: str  # a stage's, with AHEAD behind it for what the stage asks ahead
    waits: frozenset[str] = frozenset()

    @property
    def stage(self) -> str:
        return self.name.removesuffix(AHEAD)

    @property
    def ahead(self) -> bool:
        return self.name.endswith(AHEAD)


def plan_tasks(stages: Sequence[str], jobs: int) -> list[Task]:
    """What is to be done for these stages, in the order in which it is begun.

    >>> [task.name for task in plan_tasks(["06_findings", "07_rectify", "08_benchmark"], 1)]
    ['06_findings', '07_rectify', '08_benchmark']
    >>> [task.name for task in plan_tasks(["06_findings", "07_rectify"], 2)]
    ['07_rectify', '06_findings', '07_rectify_ahead']
    """
    if jobs == 1:
        return [Task(stage, frozenset(stages[:i])) for i, stage in enumerate(stages)]
    names = {*stages, *(stage + AHEAD for stage in stages)}
    return [Task(name, frozenset(waits) & names) for name, waits in WAITS.items() if name in names]


def run_tasks(
    tasks: Iterable[Task],
    jobs: int,
    begin: Callable[[Task], Future | None],
    prepare: Callable[[Task], None],
) -> None:
    """Run tasks, at most `jobs` at once, each when those it waits for are over; after a failure none is begun.

    Args:
        begin: begins a task; what comes of it is whether all went well. None where there was nothing to do.
        prepare: is told, maybe more than once, which task comes next, while others run.
    """
    waiting, over, well = list(tasks), set(), True
    running: dict[Future, Task] = {}
    while True:
        for late in [one for one in waiting if one.ahead and _is_late(one, waiting, over)]:
            waiting.remove(late)  # the stage asks it itself
            over.add(late.name)
        ready = next((task for task in waiting if task.waits <= over), None)
        if ready and well and len(running) < jobs:
            waiting.remove(ready)
            if future := begin(ready):
                running[future] = ready
            else:
                over.add(ready.name)
            continue
        if not running:
            return
        if well:
            soon = over | {task.name for task in running.values()}
            coming = [task for task in waiting if task.waits <= over]
            coming += [task for task in waiting if task.waits <= soon and task not in coming]
            for task in coming[: jobs - len(running) + 1]:  # so many begin when one ends
                prepare(task)
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            over.add(running.pop(future).name)
            well &= future.result()


def _is_late(ahead: Task, waiting: Iterable[Task], over: set[str]) -> bool:
    """Whether the stage for which something is asked ahead could begin by now, but for that."""
    return any(task.name == ahead.stage and task.waits <= over | {ahead.name} for task in waiting)
