"""A run's own records, grown: what the bench measures is level, and nothing is counted otherwise."""

import json
import random
import subprocess
import sys
import time

import numpy as np
from campaigns import million
from PIL import Image
from scipy.spatial import cKDTree

from auditkit.consensus.same import Same
from auditkit.counterfactual.store import with_counterfactuals
from auditkit.data.source import Picture
from auditkit.findings.grouping import clusters_by_text, common_template, matcher, of_templates
from auditkit.miniature import grammar
from auditkit.miniature.boards import Boards, scene_of
from auditkit.repair.near_duplicates import UNITS, _near_pairs, near_duplicates
from auditkit.repair.training_set import balanced
from auditkit.runs import jsonl


def seconds(work) -> float:
    """What a call takes of the processor, the least of three times."""
    took = []
    for _ in range(3):
        began = time.process_time()
        work()
        took.append(time.process_time() - began)
    return min(took)


def questions(n, seed=0):
    dice = random.Random(seed)
    return [grammar.ask(scene_of(f"level-{i % 500}"), dice) for i in range(n)]


def test_a_whole_run_takes_level_time_and_memory_a_probe(smoke, repository):
    command = [sys.executable, "-m", "tests.campaigns.million", str(smoke / "outputs" / "smoke"), "--here"]
    done = subprocess.run(
        [*command, "--n", "2000", "16000"], cwd=repository, capture_output=True, text=True, check=True
    )
    few, many = (million.total(parts) for parts in json.loads(done.stdout.splitlines()[-1]).values())
    assert many["seconds"] / 16_000 <= 2 * few["seconds"] / 2000
    assert many["beyond"] / 16_000 <= 1.5 * few["beyond"] / 2000


def test_grown_probes_are_others_with_the_same_outcomes_and_truth(smoke):
    audit = smoke / "outputs" / "smoke" / "05_audit"
    records = jsonl.read(audit / "scored.jsonl")
    rows = list(million.grown(records, 5 * len(records)))
    assert rows[: len(records)] == records and len({row["key"] for row in rows}) == len(rows)
    source = with_counterfactuals(Boards(), audit)
    grown, wrong = million.Grown(source), []
    for old, new in zip(records * 5, rows, strict=True):
        assert new["outcome"] == old["outcome"] and list(new) == list(old)
        if old["question"]:
            right = grown.accepted(new["picture"], new["question"])
            old_right = source.accepted(old["picture"], old["question"])
            if (new["consensus"] in right) != (old["consensus"] in old_right):
                wrong.append((old, new))
    assert not wrong
    shown = {grown.picture(row["picture"]).image.tobytes() for row in rows if row["outcome"] != "bad picture"}
    assert len(shown) == len({row["picture"] for row in rows if row["outcome"] != "bad picture"})


# ---- each part by itself, where it once took its number squared ------------------------------------------------------


def test_questions_are_matched_in_level_time():
    def match(n):
        own = [f"what time does the clock at {i} show?" for i in range(n)]
        template = common_template(own)
        matches = matcher(template, own)
        assert all(map(matches, own)) and of_templates([(template, own)], own) == [set(own)]

    assert seconds(lambda: match(16_000)) <= 2 * 8 * seconds(lambda: match(2000))


def test_of_templates_says_what_matcher_says():
    asked = questions(3000)
    clusters = clusters_by_text([(question, "") for question in asked], 24)
    groups = [[asked[i] for i in cluster] for cluster in clusters]
    templates = [(common_template(group), group) for group in groups]
    found = of_templates(templates, asked)
    for (template, group), alike in zip(templates, found, strict=True):
        matches = matcher(template, group)
        assert alike == {question for question in asked if matches(question)}
    assert len(groups) > 5 and sum(len(cluster) for cluster in clusters) == 3000


def test_answers_are_balanced_in_level_time_however_many_there_are():
    def balance(n):
        rows = [
            {"key": str(i), "outcome": "agrees", "question": f"what is at {'abc'[i % 3]}?", "consensus": f"thing {i}x"}
            for i in range(n)
        ]
        assert len(balanced(rows, 4)) == n

    assert seconds(lambda: balance(16_000)) <= 2 * 4 * seconds(lambda: balance(4000))


def test_pictures_that_look_exactly_alike_are_dropped_in_level_time():
    grey, red = Image.new("RGB", (32, 32), "grey"), Image.new("RGB", (32, 32), "red")

    def drop(n):
        rows = [{"key": str(i), "picture": str(i), "question": "is it?", "consensus": "yes"} for i in range(n)]
        found = near_duplicates(rows, lambda key: Picture(key, red if int(key) % 3 == 1 else grey))
        assert found == {str(i): "1" if i % 3 == 1 else "0" for i in range(n) if i not in (0, 1)}

    assert seconds(lambda: drop(8000)) <= 2 * 8 * seconds(lambda: drop(1000))


def test_the_first_that_looks_alike_stays_and_what_is_near_a_dropped_one_alone_stays_too():
    """a is near b and b near c, but a is not near c; each is there twice."""
    shades = {"a": 100, "b": 105, "c": 110}
    rows = [{"key": f"{i}{name}", "picture": name + str(i), "question": "is it?", "consensus": "yes"}
            for i in (0, 1) for name in "abc"]  # fmt: skip

    def picture(key):
        return Picture(key, Image.new("RGB", (32, 32), (shades[key[0]],) * 3))

    assert near_duplicates(rows, picture) == {"0b": "0a", "1a": "0a", "1b": "0a", "1c": "0c"}


def test_parts_of_many_pictures_hold_the_pairs_of_the_whole():
    dice = np.random.default_rng(0)
    copies = dice.integers(0, 250, (400, 384))[dice.integers(0, 400, 1500)] + dice.integers(-4, 5, (1500, 384))
    levels = np.clip(copies, 0, 255).astype(np.uint8)
    levels[:60] = levels[:1] + dice.integers(0, 2, (60, 384))  # alike, each pair of them
    levels[60:700] = levels[:1] + dice.integers(0, 6, (640, 384))  # that cannot be parted
    whole = cKDTree(levels / UNITS).query_pairs(1, p=np.inf)
    assert _near_pairs(levels) == whole and len(whole) > 1000


def test_different_pictures_are_compared_in_level_time():
    def compare(n):
        levels = np.random.default_rng(n).integers(0, 256, (n, 384), dtype=np.uint8)
        assert not _near_pairs(levels)

    assert seconds(lambda: compare(16_000)) <= 2 * 4 * seconds(lambda: compare(4000))


def test_without_a_judge_no_pair_is_filed():
    alike = Same()
    assert alike("a cat", "cat", "what is it?") and not alike("cat", "dog", "what is it?") and alike._known == {}
