"""Grow a run's own records to many probes, put them through notebooks 06, 07 and 08, and measure time and memory.

    python -m tests.campaigns.million outputs/demo

What needs a model is left out: the run's records already hold its answers, and the peer's are on file. From 06 it takes
the failure types, what is said in words, the peer, the estimate of false findings, the grading and what is kept; from
07 the choice of what to learn; from 08 the report. Each size runs in a process of its own.

The grown probes: copy i of a record asks about another picture, the original's cells shifted and its colours changed,
and in other words, columns, rows, colours and shapes renamed by a permutation drawn from i. The oracle is asked about
the original, so outcomes, precision and gaps stay those of the run. Copy 0 is the run itself. A picture is made from a
cached one in some 50 µs; photographs have to be decoded, which takes milliseconds each and is level as well.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from auditkit.audit.baseline import score_run
from auditkit.consensus.choose import choose_same
from auditkit.counterfactual.store import with_counterfactuals
from auditkit.data.load import load_images
from auditkit.data.source import Picture
from auditkit.findings import by_way, grading, keep, review
from auditkit.findings.failure_types import explain_types, find_failure_types
from auditkit.findings.false_rate import estimate_false_rate
from auditkit.findings.peer import compare_with_peer
from auditkit.params import Params, load_params
from auditkit.repair import prepare, provenance, training_set
from auditkit.repair.finetune import why_not_trainable
from auditkit.repair.near_duplicates import near_duplicates
from auditkit.report import summary
from auditkit.runs import costs, jsonl
from auditkit.runs.files import read_json, write_json

REPOSITORY = Path(__file__).parents[2]
SIZES = (2_000, 8_000, 32_000, 128_000, 1_000_000)
COLUMNS, ROWS = "abcd", "1234"
WORDS = ("red green blue yellow purple orange".split(), "circle square triangle diamond cross star".split())
CELL = re.compile(r"\b([a-d])([1-4])\b")


# ---- probes from probes ---------------------------------------------------------------------------------------------


@functools.lru_cache(4096)
def renaming(copy: int, back: bool = False) -> tuple[dict[str, str], dict[str, str]]:
    """What copy number `copy` calls cells, and colours and shapes; `back` leads from these names to the run's."""
    dice, cells, words = random.Random(copy), {}, {}
    columns, rows = (dice.sample(signs, 4) if copy else list(signs) for signs in (COLUMNS, ROWS))
    for (a, b), (c, d) in itertools.product(zip(COLUMNS, columns, strict=True), zip(ROWS, rows, strict=True)):
        cells[a + c] = b + d
    for names in WORDS:
        words |= zip(names, dice.sample(names, len(names)) if copy else names, strict=True)
    if back:
        return {b: a for a, b in cells.items()}, {b: a for a, b in words.items()}
    return cells, words


def renamed(text: str, copy: int, back: bool = False, question: bool = True) -> str:
    """A text with the names of a copy: of cells everywhere, of colours and shapes in questions alone, so that what the
    target says for what stays as it is in the run.
    """
    cells, words = renaming(copy, back)
    text = CELL.sub(lambda found: cells[found[0]], text)
    return " ".join(words.get(word, word) for word in text.split(" ")) if question and copy else text


def grown(records: Sequence[dict], n: int) -> Iterator[dict]:
    """n records from a run's own."""
    for i in range(n):
        row, copy = records[i % len(records)], i // len(records)
        if copy == 0:
            yield row
            continue
        said = functools.partial(renamed, copy=copy, question=False)
        new = {**row, "key": f"{row['key']}+{copy}", "picture": f"{row['picture']}+{copy}"}
        if row["base"]:
            new["base"] = f"{row['base']}+{copy}"
        for part in ("question", "text", "check"):
            new[part] = renamed(row[part], copy) if row[part] else row[part]
        for part in ("target", "consensus"):
            new[part] = said(row[part]) if row[part] else row[part]
        new["references"] = {name: said(answer) for name, answer in row["references"].items()}
        yield new


@functools.lru_cache(1024)
def tint(copy: int, side: int) -> np.ndarray:
    """What is added to the pixels of a copy, cell by cell: [4 * side, 4 * side, 3]."""
    levels = np.random.default_rng(copy).integers(-40, 41, (4, 4, 3)).astype(np.int16)
    return levels.repeat(side, 0).repeat(side, 1)


class Grown:
    """A source whose pictures and truth are those of the original that a copy was made from."""

    def __init__(self, source: Any):
        self.source = source
        self._pixels = functools.lru_cache(4096)(lambda key: np.asarray(source.picture(key).image))
        self.made = _Made(source.made)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def picture(self, key: str) -> Any:
        base, _, copy = key.partition("+")
        return Picture(key, functools.partial(self._shown, base, int(copy))) if copy else self.source.picture(key)

    def _shown(self, base: str, copy: int) -> Image.Image:
        pixels = self._pixels(base)
        side = pixels.shape[0] // 4
        moved = np.roll(pixels, (copy % 4 * side, copy // 4 % 4 * side), (0, 1))
        return Image.fromarray(np.clip(moved + tint(copy, side), 0, 255).astype(np.uint8))

    def truth(self, key: str, question: str) -> str | None:
        return next(iter(self.accepted(key, question)), None)

    def accepted(self, key: str, question: str) -> tuple[str, ...]:
        base, _, copy = key.partition("+")
        if not copy:
            return self.source.accepted(key, question)
        right = self.source.accepted(base, renamed(question, int(copy), back=True))
        return tuple(renamed(answer, int(copy), question=False) for answer in right)

    def gap(self, key: str, question: str, gaps: list) -> str | None:
        base, _, copy = key.partition("+")
        return self.source.gap(base, renamed(question, int(copy), back=True) if copy else question, gaps)


class Silent:
    """A peer whose answers are on file, but for some to the untrained auditor's questions."""

    name, batch_size = "peer", 128

    def write(self, images: Sequence, prompts: Sequence[str], *_: Any) -> list[str]:
        return ["none"] * len(prompts)


class _Made(dict):
    """Counterfactual pictures by key, those of copies among them."""

    def __missing__(self, key: str) -> Any:
        return self[key.partition("+")[0]]


def write_grown(run: Path, folder: Path, n: int) -> None:
    """A run folder with n probes: the audit's records grown, the peer's answers beside them, all else as it was."""
    for stage in sorted(run.glob("0*_*")):
        few = shutil.ignore_patterns("checkpoint*", "adapter", "answers.jsonl", "rollouts.jsonl", "proposals.jsonl")
        shutil.copytree(stage, folder / stage.name, ignore=few)
        (folder / stage.name / "DONE").write_text("grown")
    shutil.rmtree(folder / "06_findings" / "images", ignore_errors=True)
    records = jsonl.read(run / "05_audit" / "scored.jsonl")
    peer = {(row["picture"], row["question"]): row for row in jsonl.read(run / "06_findings" / "answers.jsonl")}
    scored, answers = folder / "05_audit" / "scored.jsonl", folder / "06_findings" / "answers.jsonl"
    with scored.open("w", encoding="utf-8") as rows, answers.open("w", encoding="utf-8") as said:
        for answer in peer.values():
            said.write(json.dumps(answer, ensure_ascii=False) + "\n")
        for i, row in enumerate(grown(records, n)):
            rows.write(json.dumps(row, ensure_ascii=False) + "\n")
            old, copy = records[i % len(records)], i // len(records)
            if copy and (answer := peer.get((old["picture"], old["question"]))):
                new = {"answer": renamed(answer["answer"], copy, question=False)}
                new = answer | {"picture": row["picture"], "question": row["question"]} | new
                said.write(json.dumps(new, ensure_ascii=False) + "\n")


# ---- what is measured -----------------------------------------------------------------------------------------------


class Measured:
    """Seconds, and the most memory while they lasted, of each part."""

    def __init__(self) -> None:
        self.parts: dict[str, dict] = {}

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        fresh_peak()
        began = time.process_time()
        found = work()
        seconds = time.process_time() - began
        self.parts[name] = {"seconds": round(seconds, 3), "bytes": peak()}
        print(f"  {name}: {seconds:.2f} s, {peak() / 1e6:.0f} MB", file=sys.stderr, flush=True)
        return found


def fresh_peak() -> None:
    """Forget the most memory so far, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak() -> int:
    """Bytes of memory at most, since `fresh_peak` where that works."""
    try:
        said = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        return int(said[1]) * 1024 if said else 0
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def through(folder: Path, p: Params) -> dict[str, dict]:
    """Put a grown run through 06, 07 and 08, and return {part: {"seconds", "bytes"}}."""
    measured = Measured()
    why_not_trainable(p.target)  # which imports what has not been imported yet
    measured("start", lambda: None)
    source: Any = Grown(with_counterfactuals(load_images(p.images), folder / "05_audit"))
    read_findings(measured, folder, source, p)
    choose_what_to_learn(measured, folder, source, p)
    measured("08 report", lambda: summary.write_report(folder))
    return measured.parts


def read_findings(measured: Measured, folder: Path, source: Any, p: Params) -> None:
    """What notebook 06 does."""
    alike, findings = choose_same(p), folder / "06_findings"
    scored = measured("06 read", lambda: jsonl.read(folder / "05_audit" / "scored.jsonl"))
    types = measured("06 failure types", lambda: find_failure_types(scored, p.failure_types, p.types_by))
    measured("06 review", lambda: (review.queue(scored, p.seed), review.decisions(findings, scored)))
    untrained = score_run(jsonl.read(folder / "02_disagreement" / "records.jsonl"), alike, p)
    peer: Any = Silent()
    told: dict = {"alike": alike, "max_answer_tokens": p.max_answer_tokens, "folder": findings}
    compared = measured(
        "06 peer", lambda: compare_with_peer(types, scored, untrained, peer, source, quorum=p.quorum, **told)
    )
    estimated = measured("06 false share", lambda: estimate_false_rate(scored, peer, source, **told))
    explained = measured("06 explain", lambda: explain_types(types, scored))
    edits = by_way.describe_edits(by_way.irrelevant_edits(scored), source)
    gaps = grading.known_gaps(source, p.target)
    planted, gap_of, against = measured(
        "06 grading",
        lambda: (
            grading.grade_planted_gaps(scored, source, gaps),
            grading.type_gaps(types, scored, source, gaps),
            grading.agreement_with_gaps(types, scored, source, gaps),
        ),
    )
    beside = keep.type_records(types, compared)
    measured("06 keep", lambda: keep.keep_findings(findings, source, beside, gap_of, explained, edits, planted))
    answers = findings / "answers.jsonl"
    measured("06 costs", lambda: (costs.answers_cut(answers), costs.answers_changed(answers), costs.spent(answers, [])))
    manifest = read_json(findings / "manifest.json")
    metrics = keep.findings_metrics(types, edits, planted, against, estimated)
    write_json(findings / "manifest.json", manifest | {"metrics": metrics})


def choose_what_to_learn(measured: Measured, folder: Path, source: Any, p: Params) -> None:
    """What notebook 07 does before it trains; all originals count as known."""
    p = replace(p, run_name=folder.name)
    found = measured("07 read", lambda: prepare.findings_to_learn(folder / "05_audit", folder / "06_findings", p))
    originals = provenance.draw_originals(source, p)
    worth = provenance.learnable_probes(found.scored, p)
    nearly = measured("07 near-duplicates", lambda: near_duplicates(worth, source.picture))
    distinct = [row for row in worth if row["key"] not in nearly]
    how = {name: getattr(p, name) for name in ("rectify_on", "rectify_pairs", "failure_types", "types_by", "seed")}
    learnt = measured("07 pairs", lambda: training_set.training_pairs(distinct, originals, source.picture, **how))
    examples = measured(
        "07 training set", lambda: training_set.build_training_set(learnt, distinct, originals, p, source.picture)
    )
    measured("07 trace", lambda: len(provenance.write_trace(examples, distinct, folder / "07_rectify")))


def measure(run: Path, n: int, keep: Path | None = None) -> dict[str, dict]:
    """Grow a run to n probes in a temporary folder (or in `keep`), and put it through."""
    with tempfile.TemporaryDirectory(prefix="grown-") as place:
        folder = (keep or Path(place)) / f"grown-{n}"
        shutil.rmtree(folder, ignore_errors=True)
        write_grown(run, folder, n)
        params = json.loads((run / "05_audit" / "manifest.json").read_text())["parameters"]["params_file"]
        return through(folder, load_params(params))


def in_a_process(run: Path, n: int, keep: Path | None = None) -> dict[str, dict]:
    """`measure` in a process of its own, so that no other size's memory counts."""
    more = ["--keep", str(keep)] if keep else []
    command = [sys.executable, "-m", "tests.campaigns.million", str(run), "--n", str(n), "--here", *more]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])[str(n)]


def total(parts: dict[str, dict]) -> dict[str, float]:
    """{"seconds": of all parts, "bytes": of the largest, "beyond": those beyond what the imports took}."""
    most = max(part["bytes"] for part in parts.values())
    return {
        "seconds": sum(part["seconds"] for part in parts.values()),
        "bytes": most,
        "beyond": most - parts["start"]["bytes"],
    }


def as_table(found: dict[int, dict[str, dict]]) -> str:
    """Seconds and, in brackets, megabytes of each part by the number of probes."""
    lines = ["| part | " + " | ".join(f"{n:,}" for n in found) + " |", "|---|" + "---:|" * len(found)]
    for part in next(iter(found.values())):
        cells = [f"{parts[part]['seconds']:.1f} s, {parts[part]['bytes'] / 1e6:,.0f} MB" for parts in found.values()]
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    sums = {n: total(parts) for n, parts in found.items()}
    cells = [f"{s['seconds']:.1f} s, {s['bytes'] / 1e6:,.0f} MB" for s in sums.values()]
    lines.append("| all | " + " | ".join(cells) + " |")
    each = [f"{1e6 * s['seconds'] / n:.0f} µs, {s['bytes'] / n / 1e3:.1f} kB" for n, s in sums.items()]
    return "\n".join([*lines, "| a probe | " + " | ".join(each) + " |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="a run's folder with its nine stages, such as outputs/demo")
    parser.add_argument("--n", type=int, nargs="+", default=SIZES, help="numbers of probes")
    parser.add_argument("--keep", type=Path, help="a folder for the grown runs, which else are removed")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        print(json.dumps({n: measure(given.run.resolve(), n, given.keep) for n in given.n}))
        return
    found = {n: in_a_process(given.run.resolve(), n, given.keep and given.keep.resolve()) for n in given.n}
    print(as_table(found))


if __name__ == "__main__":
    main()
