"""The paper's claims: the page is what the shipped run's summary gives, and what is missing is said."""

import json

import pytest

from auditkit.errors import AuditError
from auditkit.experiments.reproduce import (
    BEGIN,
    END,
    PAGE,
    claim_result,
    counted_skills,
    main,
    read_claims,
    summaries_of,
    write_page,
)
from auditkit.runs.folder import project_root

DEMO = "auditkit run params/demo.yaml"


@pytest.fixture
def shipped(repository) -> dict:
    return json.loads((repository / "outputs" / "example" / "summary.json").read_text())


def test_the_page_says_what_the_shipped_run_has_measured(repository, shipped, tmp_path):
    page = tmp_path / "reproduce.md"
    page.write_text((repository / PAGE).read_text())
    write_page({DEMO: shipped}, page)
    assert page.read_text() == (repository / PAGE).read_text(), "python -m auditkit.experiments.reproduce --write"


def test_every_claim_has_its_commands_and_its_verdict(repository):
    claims = read_claims()
    assert len(claims) >= 8 and len({row["claim"] for row in claims}) == len(claims)
    for row in claims:
        assert row["full"].startswith("auditkit ") and row["verdict"].endswith("."), row["claim"]
        assert (repository / row["miniature"].split()[2]).is_file()
        assert ("result" in row) != ("study" in row)


def test_skills_are_counted_by_where_they_stand():
    sides = {"before": {"value": 0.5}, "after": {"value": 0.9}, "peer": {"value": 0.8}}
    fell = {"before": {"value": 0.5}, "after": {"value": 0.4}, "peer": {"value": 0.8}}
    found = counted_skills({"benchmarks": {"colour": sides, "shape": fell, "size": fell}})
    assert found == {"skills": 3, "skills_up": 1, "skills_down": 2, "skills_above_peer": 1}


def test_a_study_is_told_arm_by_arm():
    row = {"study": ["question only", "mix"], "measure": "gain"}
    arms = {"question only": {"gain": {"mean": 0.114, "low": 0.111, "high": 0.117}}}
    arms["mix"] = {"gain": {"mean": 0.116, "low": 0.105, "high": 0.132}}
    told = claim_result(row, {"arms": arms})
    assert told == "question only: 11.4 points (11.1 to 11.7); mix: 11.6 points (10.5 to 13.2)"


def test_a_figure_that_is_not_there_is_named(shipped):
    with pytest.raises(AuditError, match="claims.yaml: search_success.trained is not in summary.json"):
        claim_result({"result": "{search_success.trained}"}, shipped | {"search_success": {}})


def test_a_page_without_a_place_for_the_table_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# page\n{BEGIN}")
    with pytest.raises(AuditError, match=END):
        write_page({}, page)


def test_what_has_been_run_is_found_by_its_command(project, shipped, repository):
    (project / "outputs" / "demo").mkdir(parents=True)
    (project / "outputs" / "demo" / "summary.json").write_text(json.dumps(shipped))
    assert list(summaries_of([DEMO, "auditkit run params/study_ways.yaml --jobs 2"], project / "outputs")) == [DEMO]
    assert project_root() == project
    (project / "docs").mkdir()
    (project / PAGE).write_text(f"above\n{BEGIN}an earlier table\n{END}\nbelow\n")
    assert main(["--write"]) == 0
    text = (project / PAGE).read_text()
    assert "an earlier table" not in text and text.startswith("above\n") and text.endswith(f"{END}\nbelow\n")
    assert f"{100 * shipped['search_success']['trained']['value']:.1f} %" in text
