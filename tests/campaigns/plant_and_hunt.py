"""Plant and hunt for real: sets of gaps drawn at random, hidden until the hunt is over.

    python -m tests.campaigns.plant_and_hunt plant outputs/hunts --sets 3      # draws and plants; tells nobody what
    python -m tests.campaigns.plant_and_hunt audit outputs/hunts/set-1         # the hunter's audit: types and examples
    python -m tests.campaigns.plant_and_hunt hand-in outputs/hunts/set-1 "colour: purple blue" "counting: 3 5"
    auditkit workshop scores outputs/hunts                                     # opens the seals

Seeds come from the machine, so nobody knows them beforehand. A guess is "kind of question: value answer".
"""

import argparse
import random
import re
import secrets
import sys
import time
from collections import Counter
from pathlib import Path

from auditkit.errors import AuditError
from auditkit.findings.failure_types import explain_types, find_failure_types
from auditkit.params import load_params
from auditkit.workshop import game, lessons

GAPS = 4
HUNTER = "hunter"


def plant_sets(place: Path, sets: int, steps: int) -> None:
    """Plant `sets` models, each with four gaps of a seed that is thrown away."""
    for number in range(1, sets + 1):
        if (place / f"set-{number}" / game.CARD).is_file():
            continue
        gaps = game.draw_gaps(GAPS, random.Random(secrets.randbits(64)))
        began, cpu = time.monotonic(), time.process_time()
        sealed = game.plant_sealed(gaps, place / f"set-{number}", f"set {number}", steps)
        depth, outside = sealed["wrong"].values(), sealed["right_outside"]
        print(
            f"set-{number}: {GAPS} gaps in {steps} steps, {time.monotonic() - began:.0f} s "
            f"({time.process_time() - cpu:.0f} s of the processor); wrong as planned {min(depth):.0%} to "
            f"{max(depth):.0%}, right elsewhere {outside:.0%}",
            flush=True,
        )


def audit_set(folder: Path, n: int) -> None:
    """What the hunter sees: failure types with what was asked and said, of which nothing is known to be true."""
    hunt = game.open_hunt(folder, HUNTER)
    p = lessons.with_target(load_params("params/workshop.yaml"), folder)
    cpu, seed = time.process_time(), sum(map(ord, folder.name))
    scored = lessons.audit_small(p, n, hunt, seed)
    types = find_failure_types(scored, 24)
    found = Counter(row["outcome"] for row in scored)
    print(f"{n} questions, {time.process_time() - cpu:.0f} s of the processor: {dict(found)}\n")
    for kind in types:
        print(f"{kind.size:4}  {kind.name}   {[(c['consensus'], c['target'], c['count']) for c in kind.confusion[:4]]}")
    print("\n" + explain_types(types, scored))


def read_guess(text: str) -> game.Gap:
    """A guess as it is typed."""
    found = re.fullmatch(r"([a-z ]+): (\S+) (\S+)", text)
    if not found:
        raise AuditError(f'{text!r}: write a guess as "kind of question: value answer".')
    return game.make_gap(*found.groups())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("plant", "audit", "hand-in"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("guesses", nargs="*")
    parser.add_argument("--sets", type=int, default=3)
    parser.add_argument("--steps", type=int, default=game.STEPS)
    parser.add_argument("--n", type=int, default=1000)
    options = parser.parse_args()
    try:
        if options.what == "plant":
            plant_sets(options.folder, options.sets, options.steps)
        elif options.what == "audit":
            audit_set(options.folder, options.n)
        else:
            print(game.hand_in(game.open_hunt(options.folder, HUNTER), [read_guess(text) for text in options.guesses]))
    except AuditError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
