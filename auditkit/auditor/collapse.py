"""Has the auditor's training collapsed: is there one thing left that it writes, or nothing left to compare?

GRPO learns from differences within a group. Two ways lead to none. A question that often works is asked of every
picture, however it looks; or all texts of a group earn the same, and the only kind that still earns is one. Both look
like success, so they are watched by what was written, not by the reward: `step_measures` puts a step into figures,
each of them a column of history.jsonl, and `find_collapse` reads these rows and knows nothing else. What follows from
one is in closed.py.

TRL's own `reward_std` and `frac_reward_zero_std` say less here: with advantages divided by the whole step's deviation
(auditor/grpo.py, 4) they are of the whole step, not of its groups.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from auditkit.auditor.rewards import Rollout

LATELY = 200  # successes in which kinds of text are counted
# What a step of a collapsed auditor shows. In no step of the demo (90 steps, seed 0) was more than 0.61 of one text,
# 0.5 of the groups of one text, or 0.88 of them flat. A training without replay, at 2.5 times the learning rate and
# before a step was of one way, had 0.83 to 1.0 of one text in every step from the 32nd on.
ONE_TEXT = 0.8  # of a step's texts are one and the same
ALIKE = 0.95  # of its groups wrote one text each, so there is nothing to compare
FLAT = 0.95  # of its groups earn one reward, while all that lately succeeded is of one kind


def _earned(rollout: Rollout) -> float:
    return rollout.success + (rollout.wrote is not None)


def step_measures(
    rollouts: Sequence[Rollout], lately: Sequence[int], earned: Callable[[Rollout], float] = _earned
) -> dict[str, float]:
    """A step in figures. A text is the question or the wish alone; the note before it differs from picture to picture.

    Args:
        rollouts: of one step, of all processes; a group is those about one picture.
        lately: kinds (clusters) of the latest successes, the step's own among them.
        earned: what disagreement and format pay for a rollout, 0 to 2.

    Returns {"group_spread": mean standard deviation within a group of what disagreement and format earn, "flat_groups":
    share of groups without any, "alike_groups": share of groups that wrote one text, "repeats": share of texts that
    stand in the step more than once, "commonest": share of the most frequent, "kinds_lately": kinds among `lately`}.
    """
    groups = defaultdict(list)
    for rollout in rollouts:
        groups[rollout.picture].append(rollout)
    spreads = [pstdev(earned(one) for one in group) for group in groups.values()]
    texts = Counter(_text(one) for one in rollouts)
    return {
        "group_spread": fmean(spreads),
        "flat_groups": fmean(spread == 0 for spread in spreads),
        "alike_groups": fmean(len({_text(one) for one in group}) == 1 for group in groups.values()),
        "repeats": sum(n for n in texts.values() if n > 1) / len(rollouts),
        "commonest": max(texts.values()) / len(rollouts),
        "kinds_lately": len(set(lately)),
    }


SIGNS = {  # of a collapse -> whether a step's row shows it
    "text": lambda row: row["commonest"] >= ONE_TEXT,
    "groups": lambda row: row["alike_groups"] >= ALIKE,
    "kind": lambda row: row["flat_groups"] >= FLAT and row["kinds_lately"] == 1,
}
IN_WORDS = {
    "text": "{commonest:.0%} of all texts are one and the same",
    "groups": "{alike_groups:.0%} of the groups wrote one text each, so there is nothing to compare",
    "kind": "{flat_groups:.0%} of the groups earn all the same, and one kind of text is all that succeeds",
}


@dataclass(frozen=True)
class Collapse:
    """That a training has collapsed: by which step, and how it shows."""

    step: int  # the latest
    first: int  # of the steps in a row that show it
    way: str  # of these steps
    by: str  # which of SIGNS shows it: one text; one text in each of the groups; one kind that succeeds
    seen: str  # the same in words, with the figure of the latest step


def find_collapse(history: Sequence[dict], patience: int) -> Collapse | None:
    """Has the training collapsed by its latest step?

    It has if each of the last `patience` steps of one way shows the same of: nearly all texts of the step are one;
    nearly every group wrote one text; nearly no group has any spread of reward, while lately one kind of text succeeds.

    Args:
        history: rows of history.jsonl, oldest first; what was written before there was a watch is passed over.
        patience: steps; 0: never.
    """
    watched = [row for row in history if "commonest" in row]
    last = [row for row in watched if row.get("way") == watched[-1].get("way")][-patience:]
    if not patience or len(last) < patience:
        return None
    by = next((sign for sign, shows in SIGNS.items() if all(map(shows, last))), None)
    if by is None:
        return None
    now = last[-1]
    return Collapse(now["step"], last[0]["step"], now.get("way", "question"), by, IN_WORDS[by].format(**now))


def collapse_reason(
    history: Sequence[dict], *, patience: int, replay_weight: float, coverage_weight: float, learning_rate: float
) -> str:
    """What was seen and what would keep a training wider, in words, if it has collapsed (`find_collapse`); "" if not.

    Args:
        history, patience: as for `find_collapse`.
        replay_weight, coverage_weight, learning_rate: what they are now, to be said in the sentence.
    """
    found = find_collapse(history, patience)
    if found is None:
        return ""
    of_one_way = f" of {found.way}" if len({row.get("way") for row in history if "commonest" in row}) > 1 else ""
    return (
        f"grpo_patience: by step {found.step} the auditor has collapsed: for {patience} steps{of_one_way} in a row "
        f"nearly all it does is one thing (at the last, {found.seen}). A higher replay_weight (now {replay_weight:g}) "
        f"or coverage_weight (now {coverage_weight:g}), or a lower grpo_learning_rate (now {learning_rate:g}), keeps "
        "a training wider; grpo_patience: 0 would train on."
    )


def _text(rollout: Rollout) -> str:
    return rollout.wrote or rollout.text
