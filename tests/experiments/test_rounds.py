"""Rounds: each is built on the one before, they end when a round gains nothing, and a killed command goes on."""

import json

import pytest
from checkpoints import whole_checkpoint

from auditkit import specs, stats
from auditkit.cli import main
from auditkit.errors import AuditError
from auditkit.experiments import rounds
from auditkit.experiments.rounds import run_rounds
from auditkit.params import load_params, parse_setting
from auditkit.runs.folder import STAGES, open_stage, start_over

FILE = "params/smoke.yaml"
PLANTED = [["a", "b"], ["b", "c"], ["c"], ["d"]]  # the gaps that each round finds


class Machine:
    """Does a stage's command as far as rounds look: folders, manifests, and the last stage's summary."""

    def __init__(self, gains):
        self.gains, self.done, self.fails_at = gains, [], None

    def __call__(self, words):
        texts = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        p, number = load_params(words[4], **dict(map(parse_setting, texts))), words[words.index("--only") + 1]
        if (p.run_name, number) == self.fails_at:
            return 1
        self.done.append((p.run_name, number))
        stage = next(stage for stage in STAGES if stage.startswith(number))
        run = open_stage(p, stage)
        place = int(p.run_name.partition(".round")[2] or 1) - 1
        if number == "04":
            for step in (3, 12, 6):
                whole_checkpoint(run.folder, step)
        if number == "06":
            gaps = [{"name": name, "found": name in PLANTED[place]} for name in "abcd"]
            run.path("planted.json").write_text(json.dumps({"gaps": gaps}))
        if number == "07":
            run.path("adapter/adapter_config.json").touch()
        run.count(target_called=1, near_duplicates=place)
        run.finish()
        if number == "08":
            (run.folder.parent / "summary.json").write_text(json.dumps(self.summary(place)))
        return 0

    def summary(self, place):
        skills = {
            "colour": {"before": stats.rate(70 + 5 * place, 100), "after": stats.rate(75 + 5 * place, 100)},
            "shape": {"before": stats.rate(90, 100), "after": stats.rate(90 - place, 100)},
        }
        change = {"value": self.gains[place], "low": self.gains[place] - 0.01, "high": self.gains[place] + 0.01, "n": 9}
        return {
            "search_success": {"untrained": stats.rate(2, 10), "trained": stats.rate(7, 10)},
            "findings": {"total": 40 - place},
            "rectification": {"pairs": 40, "trained_on": 38},
            "planted_gaps": {"planted": 4, "found": 2},
            "benchmarks": skills,
            "gain": {"agreement": change, "skills": change},
            "counts": {"07_rectify": {"near_duplicates": place}},
        }


def rounds_of(machine, most=4, settings=("seed=5",), said=None):
    page = run_rounds(FILE, settings, most, machine, (said if said is not None else []).append)
    return json.loads((page.parent / "summary.json").read_text()), page


def test_a_round_is_built_on_those_before_it_and_the_last_is_the_one_that_gains_nothing(project):
    summary, page = rounds_of(Machine([0.05, 0.02, 0.005, 0.3]))
    first, second, third = summary["rounds"]
    adapters = ["outputs/smoke/07_rectify/adapter", "outputs/smoke.round2/07_rectify/adapter"]
    assert first["target"] == "miniature:target" and first["auditor"] == "miniature:auditor"
    assert second["target"] == f"miniature:target?adapter={adapters[0]}"
    assert specs.parse(third["target"]).adapters == adapters
    trained = [f"outputs/{name}/04_auditor/checkpoint-12" for name in ("smoke", "smoke.round2")]
    assert specs.parse(third["auditor"]).adapters == trained
    assert [row["seed"] for row in summary["rounds"]] == [5, 1005, 2005]
    made = json.loads((project / "outputs/smoke.round3/07_rectify/manifest.json").read_text())["parameters"]
    assert made["earlier"] == ["smoke", "smoke.round2"] and made["target"] == third["target"]
    assert summary["ended"] == "ended after round 3: its gain has an interval of +0.5 points (-0.5 to +1.5)"
    assert summary["repaired"] == third["target"], "the third repair gained nothing, so it is left off"
    assert [row["planted_gaps"]["found_so_far"] for row in summary["rounds"]] == [2, 3, 3]
    assert [row["fall"]["points"] for row in summary["rounds"]] == [0.0, 1.0, 2.0]
    assert third["fall"]["skill"] == "shape" and third["skills"]["after"]["value"] == pytest.approx(0.865)
    html = page.read_text()
    assert page == project / "outputs/smoke.rounds/report.html" and "smoke.round3" in html and "http-equiv" in html
    assert "ended after round 3" in html.lower() and 'src="http' not in html


def test_what_is_done_is_not_done_again_and_a_failure_is_gone_on_from(project):
    machine = Machine([0.05, 0.02])
    machine.fails_at = ("smoke.round2", "05")
    with pytest.raises(AuditError, match="round 2 stopped at 05_audit.*same command goes on"):
        rounds_of(machine, most=2)
    machine.fails_at = None
    summary, _ = rounds_of(machine, most=2)
    assert machine.done == [
        (name, n) for name in ("smoke", "smoke.round2") for n in ("02", "04", "05", "06", "07", "08")
    ]
    assert "still gained" in summary["ended"] and len(specs.parse(summary["repaired"]).adapters) == 2
    done = list(machine.done)
    rounds_of(machine, most=2)
    assert machine.done == done


def test_a_round_on_a_repair_that_was_made_anew_is_refused(project):
    machine = Machine([0.05, 0.02])
    rounds_of(machine, most=2)
    p = load_params(FILE, seed=5)
    start_over(p, ["07_rectify"])
    with pytest.raises(AuditError, match="smoke.round2 was built on a smoke/07_rectify that has been made anew since"):
        rounds_of(machine, most=2)


def test_a_run_that_found_nothing_ends_the_rounds(project):
    machine = Machine([0.0])
    found = machine.summary
    machine.summary = lambda place: {k: v for k, v in found(place).items() if k not in ("gain", "benchmarks")}
    summary, page = rounds_of(machine)
    assert summary["ended"] == "ended after round 1: nothing was found to repair"
    assert summary["repaired"] == "miniature:target" and "round 1" in page.read_text()


def test_a_target_that_cannot_be_repaired_is_refused_before_the_first_round(project):
    machine = Machine([0.05])
    with pytest.raises(AuditError, match="audited but not repaired"):
        rounds_of(machine, settings=["target=vllm:org/large"])
    assert machine.done == [] and not (project / "outputs").exists()


def test_the_command_takes_the_settings_of_all_rounds(project, monkeypatch, capsys):
    machine = Machine([0.05, 0.02])
    monkeypatch.setattr(rounds, "run_command", machine)
    assert main(["rounds", FILE, "--set", "run_name=mine", "--set", "ways=[question]", "--most", "2"]) == 0
    made = json.loads((project / "outputs/mine.round2/05_audit/manifest.json").read_text())["parameters"]
    assert made["ways"] == ["question"] and made["seed"] == 1000 and made["earlier"] == ["mine"]
    said = capsys.readouterr().out
    assert "round 2: mine.round2, target target+mine.07_rectify.adapter" in said
    assert "gain in agreement +2.0 points (+1.0 to +3.0)" in said and "outputs/mine.rounds/report.html" in said
