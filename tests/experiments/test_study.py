"""A study runs its arms with its seeds, compares them in pairs, and says in one table what came of each."""

import json
import subprocess

import pytest
import yaml

from auditkit import stats
from auditkit.errors import AuditError
from auditkit.experiments import study
from auditkit.experiments.study import (
    MEASURES,
    NEEDED,
    _borrowed,
    _command,
    _folder,
    _parameters,
    compare_arms,
    is_study,
    load_study,
    run_study,
    write_study,
    write_study_report,
)
from auditkit.params import parse_setting
from auditkit.report import summary as reporting
from auditkit.runs.folder import FORMAT

FILE = {
    "study": "two",
    "question": "Is one better than the other?",
    "base": "params/smoke.yaml",
    "seeds": [0, 1, 2],
    "settings": {"grpo_steps": 3, "grpo_checkpoints": 1},
    "arms": {"one & all": {"ways": ["question"]}, "the other": None},
}


@pytest.fixture
def write(project):
    def write(**changes):
        (project / "params" / "two.yaml").write_text(yaml.safe_dump(FILE | changes, sort_keys=False))
        return "params/two.yaml"

    return write


def summary(seed: int, better: float) -> dict:
    rates = {"before": stats.rate(70, 100), "after": stats.rate(80 + seed + round(better), 100)}
    return {"benchmarks": {"colour": rates}, "findings": {"total": 40 + seed, "by_type": {"a": {}, "b": {}}},
            "search_success": {"trained": stats.rate(30, 40)},
            "ways": {"question": {"probes": 100, "search_success": stats.rate(50, 100)},
                     "edit": {"probes": 300, "search_success": stats.rate(90, 300)}}}  # fmt: skip


def test_the_shipped_studies_are_in_order(repository, monkeypatch):
    monkeypatch.chdir(repository)
    found = sorted(repository.glob("params/study_*.yaml"))
    assert found
    for file in found:
        one = load_study(file)
        assert is_study(file) and f"study_{one.name}" == file.stem and len(one.seeds) >= 3
    assert not is_study("params/demo.yaml")


@pytest.mark.parametrize(
    "change, says",
    [
        ({"arms": {"one": {}}}, "arms: a study compares at least two"),
        ({"arms": {"a b": {}, "a-b": {}}}, "two names differ in punctuation alone"),
        ({"arms": {"one": {}, "two": {"grpo_step": 3}}}, "two.yaml, arm 'two': .*unknown key grpo_step; did you mean"),
        ({"seeds": [1, 1]}, "seeds must be different whole numbers"),
        ({"seed": 3}, "unknown key seed; a study has study, question, base, seeds, settings, arms, measures, curve, "),
        ({"measures": ["gains"]}, "measures: 'gains' is not one of trained, success"),
        ({"curve": {"x": "grpo_steps", "y": "luck"}}, "curve: write {x: a parameter, y: one of the measures}"),
        ({"budgets": [250, "all"]}, "budgets: write numbers of questions, as in"),
        ({"audits": ["neither"]}, "audits: 'neither' is none of its arms"),
        ({"base": "params/gone.yaml"}, "No parameter file params/gone.yaml"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_work_is_told_before_anything_runs(write, change, says):
    with pytest.raises(AuditError, match=says):
        load_study(write(**change))


def test_each_run_gets_its_arm_and_seed(write):
    one = load_study(write())
    words = _command(one, "one & all", 2, "04_auditor")
    settings = dict(parse_setting(text) for text in words if "=" in text)
    assert settings == {"ways": ["question"], "grpo_steps": 3, "grpo_checkpoints": 1, "seed": 2,
                        "run_name": "study_two.one_all.2"}  # fmt: skip
    assert words[-1] == "run_name=study_two.one_all.2" and words[words.index("--only") + 1] == "04"


def test_arms_are_compared_in_pairs_seed_by_seed():
    arms = {"first": [summary(seed, 0) for seed in range(3)], "second": [summary(seed, 5 + seed) for seed in range(3)]}
    table = compare_arms(arms)
    assert table["first"]["success"]["seeds"] == [pytest.approx(0.35)] * 3, "over all ways, weighted by their probes"
    assert table["first"]["trained"]["seeds"] == [pytest.approx(0.75)] * 3
    assert table["first"]["gain"]["mean"] == pytest.approx(0.11) and "against" not in table["first"]["gain"]
    against = table["second"]["gain"]["against"]
    assert against["mean"] == pytest.approx(0.06) and against["low"] < 0.06 < against["high"] and against["n"] == 3
    assert table["second"]["types"]["mean"] == 2 and "gaps" not in table["first"], "what was not measured is absent"


def test_the_report_holds_every_number_and_stands_alone(write, project):
    one = load_study(write())
    for arm in one.arms:
        for seed in one.seeds:
            folder = project / "outputs" / one.run_name(arm, seed)
            folder.mkdir(parents=True)
            (folder / "summary.json").write_text(json.dumps(summary(seed, 5 * (arm == "the other"))))
    one.folder.mkdir(parents=True)
    page = write_study(one).read_text()
    assert "one &amp; all" in page and "Is one better than the other?" in page
    assert "81.0\N{NO-BREAK SPACE}%" in page and "86.0\N{NO-BREAK SPACE}%" in page and "<svg" in page
    assert "78.5\N{NO-BREAK SPACE}% to 83.5\N{NO-BREAK SPACE}%" in page and "Δ +5.0 in all seeds" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page
    written = json.loads((one.folder / "summary.json").read_text())
    assert written["arms"]["the other"]["after"]["against"]["mean"] == pytest.approx(0.05)
    assert page.startswith("<!DOCTYPE html>")


def test_runs_are_made_side_by_side_and_one_that_fails_is_named(write, project, monkeypatch):
    (project / "notebooks" / "00_fails.ipynb").write_text("{}")
    monkeypatch.setattr(study, "NEEDED", ("00_fails",))
    said = []
    with pytest.raises(AuditError, match=r"6 of 6 runs failed; outputs/study_two/study_two.one_all.0.log says why"):
        run_study(load_study(write()), 2, said.append)
    assert said[0].startswith("study two: 2 arms x 3 seeds") and len(said) == 7


def test_a_run_of_which_every_stage_was_copied_gets_its_report(write, project, monkeypatch):
    def report_of(folder):
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps(summary(0, 0)))

    monkeypatch.setattr(study, "_borrowed", lambda p, stage: True)
    monkeypatch.setattr(reporting, "write_report", report_of)
    assert run_study(load_study(write()), 1, lambda said: None).is_file()


@pytest.mark.parametrize("jobs, threads", [(1, None), (2, "1")])
def test_only_what_is_not_done_is_started_and_jobs_side_by_side_have_a_thread_each(
    write, project, monkeypatch, jobs, threads
):
    one = load_study(write(measures=["trained"]))
    for arm in one.arms:
        for seed in one.seeds:
            p, folder = _parameters(one, arm, seed), _folder(one, arm, seed)
            for stage in one.stages:
                finished(folder, p, stage, {})
    (folder / "05_audit" / "DONE").unlink()  # of the last
    started = []

    def start(words, env, **_):
        started.append((words[words.index("--only") + 1], env.get("OMP_NUM_THREADS")))
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(subprocess, "run", start)
    monkeypatch.setattr(
        reporting, "write_report", lambda made: (made / "summary.json").write_text(json.dumps(summary(0, 0)))
    )
    run_study(one, jobs, lambda said: None)
    assert started == [("05", threads)]


def test_what_is_measured_of_audits_alone_needs_no_repair(write):
    audits = load_study(write(measures=["trained", "half", "again"]))
    assert audits.stages == ("02_disagreement", "04_auditor", "05_audit", "06_findings")
    assert load_study(write(measures=["trained", "gain"])).stages == NEEDED


def finished(folder, p, stage: str, needs: dict) -> str:
    """A stage folder as a run leaves it, and its id."""
    (folder / stage).mkdir(parents=True)
    manifest = {"format": FORMAT, "parameters": vars(p), "id": f"{folder.name}-{stage}", "needs": needs}
    (folder / stage / "manifest.json").write_text(json.dumps(manifest))
    (folder / stage / "DONE").write_text("today")
    return manifest["id"]


def test_arms_share_the_stages_they_have_in_common(write, project):
    one = load_study(write(arms={"first": {}, "more steps": {"rectify_steps": 7}, "other": {"temperature": 0.1}}))
    first, more, other = (_parameters(one, arm, 0) for arm in one.arms)
    made = _folder(one, "first", 0)
    auditor = finished(made, first, "04_auditor", {})
    audit = finished(made, first, "05_audit", {"04_auditor": auditor})
    finished(made, first, "07_rectify", {"05_audit": audit})
    assert not _borrowed(more, "05_audit"), "its own auditor is not there yet, so that one was another's"
    assert [_borrowed(more, stage) for stage in ("04_auditor", "05_audit", "07_rectify")] == [True, True, False]
    assert (_folder(one, "more steps", 0) / "05_audit" / "DONE").is_file()
    assert not _borrowed(more, "04_auditor"), "what is there is not taken again"
    assert not _borrowed(other, "04_auditor"), "made at another temperature"


def test_many_arms_are_rows_and_a_curve_joins_those_alike_up_to_a_comma(write, project):
    arms = {f"{who}, {n}": {"audit_probes": n} for who in ("audit", "random") for n in (24, 48, 96, 192)}
    arms |= {"on its own": {"audit_probes": 48}, "once, 48": {"audit_probes": 48}}
    one = load_study(write(arms=arms, measures=["gain", "findings"], curve={"x": "audit_probes", "y": "gain"}))
    summaries = {arm: [summary(seed, i) for seed in one.seeds] for i, arm in enumerate(arms)}
    one.folder.mkdir(parents=True)
    table = compare_arms(summaries)
    page = write_study_report(one, table, {name: MEASURES[name] for name in one.measures}).read_text()
    assert '<th scope="row">random, 192</th>' in page and '<th scope="col">gain, points</th>' in page
    figure = page[page.index('id="curve-') :][:20000]
    assert ">audit</text>" in figure and ">random</text>" in figure and ">192</text>" in figure
    assert ">on its own</text>" not in figure and ">once</text>" not in figure, (
        "a line is of arms that differ behind a comma"
    )


def test_an_arm_may_end_with_its_findings_and_curves_are_on_the_page(write, project):
    one = load_study(write(audits=["the other"], budgets=[250, 500], measures=["gain", "findings"]))
    assert one.stages_of("one & all") == NEEDED and one.stages_of("the other") == study.AUDIT
    summaries = {arm: [summary(seed, 0) for seed in one.seeds] for arm in one.arms}
    for found in summaries["the other"]:
        del found["benchmarks"]
    one.folder.mkdir(parents=True)
    rows = {n: {"gaps": stats.over_seeds([n / 50, n / 25]), "precision": stats.over_seeds([0.96, 0.98])}
            for n in (250, 500)}  # fmt: skip
    curves = {arm: {name: rows for name in ("audit", "training and audit")} for arm in one.arms}
    measures = {name: MEASURES[name] for name in one.measures}
    page = write_study_report(one, compare_arms(summaries), measures, curves).read_text()
    assert "by questions put to the target: training and audit</h3>" in page and "<b>15.0</b>" in page
    assert page.count('<th scope="col">500</th>') == 2 and "97.0\N{NO-BREAK SPACE}% true" in page
    assert (
        json.loads((one.folder / "summary.json").read_text())["curves"]["the other"]["audit"]["250"]["gaps"]["n"] == 2
    )


def test_how_much_the_audits_of_several_seeds_find_alike():
    kinds = [{"what colour? — says red": {}, "what shape? — says star": {}}, {"what colour? — says blue": {}}]
    found = [summary(seed, 0) | {"findings": {"total": 3, "by_type": kinds[seed % 2]}} for seed in range(3)]
    again = compare_arms({"one": found, "two": found})["one"]["again"]
    assert again["seeds"] == [pytest.approx(0.75), pytest.approx(0.5), pytest.approx(0.75)]
