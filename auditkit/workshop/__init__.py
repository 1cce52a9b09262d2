"""The workshop: what the exercises of notebooks/workshop/ check, and the game of plant and hunt.

In: the small functions that a participant writes; gaps that a group chooses. Out: what is wrong, in words; a planted
model with its gaps sealed, a hunt's guesses, and the scores of all groups side by side.
Start with exercises.py (the checks) and game.py (plant, hunt, scores); lessons.py does what an exercise needs computed,
forms.py holds the two forms, example_run.py unpacks a finished run.
Imports the rooms above, by whose functions each check decides; no room imports it, and it is for people alone.
"""

from auditkit.workshop.exercises import (
    check_blind,
    check_commands,
    check_coverage,
    check_elsewhere,
    check_fair,
    check_gain,
    check_interval,
    check_mcnemar,
    check_reward,
    check_turned,
    check_vote,
)

__all__ = [
    "check_blind",
    "check_commands",
    "check_coverage",
    "check_elsewhere",
    "check_fair",
    "check_gain",
    "check_interval",
    "check_mcnemar",
    "check_reward",
    "check_turned",
    "check_vote",
]
