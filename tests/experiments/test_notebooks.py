"""The notebooks: what a reader may rely on in each, the whole smoke run, and a run that is killed and goes on."""

import ast
import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from smoke_run import as_if_ended_so, auditkit, make_project

from auditkit.audit.allocation import checkpoint_shares
from auditkit.experiments.papermill import stage_notebooks
from auditkit.findings import review
from auditkit.findings.recheck import ELSEWHERE, RECHECK_FILE
from auditkit.params import FIELDS, load_params
from auditkit.repair.provenance import probe_of
from auditkit.report.export import export_run
from auditkit.report.lesson import PICTURE, STEPS, where_we_are
from auditkit.runs import jsonl
from auditkit.runs.folder import STAGES, notebook_files, notebook_of
from auditkit.runs.inventory import damage, listed_files
from auditkit.runs.probe import OUTCOMES
from auditkit.text import slug

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("[0-9]*.ipynb"))
WRITERS = ("open", "write_text", "write_bytes", "dump", "save", "savefig", "to_csv", "unlink")
SOURCE = {"02-judge", "03-parse", "03-good-source", "04-rewards", "04-replay", "04-collapse", "05-score-source",
          "07-set-source"}  # cells that show source code  # fmt: skip
FIRST = ["run_name", "params_file", "seed", "resume"]


# ---- each notebook as it is committed ------------------------------------------------------------------------------


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def book(request):
    return nbformat.read(request.param, as_version=4)


@pytest.fixture
def path(request, book) -> Path:
    return request.node.callspec.params["book"]


def code(book) -> list:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def test_there_are_nine_in_the_order_of_the_stages():
    assert [path.name[:2] for path in NOTEBOOKS] == [stage[:2] for stage in STAGES]


def test_it_is_committed_clean(book, path):
    nbformat.validate(book)
    ids = [cell.id for cell in book.cells]
    assert len(set(ids)) == len(ids) and all(id.startswith(f"{path.name[:2]}-") for id in ids)
    assert set(book.metadata) <= {"kernelspec", "language_info"} and book.metadata.kernelspec.name == "python3"
    for cell in code(book):
        assert cell.outputs == [] and cell.execution_count is None, cell.id
    assert all(set(cell.metadata) <= {"tags"} for cell in book.cells)


def test_its_parameters_are_those_of_the_demo(book):
    (cell,) = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
    assert book.cells.index(cell) == 1
    written = cell.source.splitlines()
    settings = ast.parse(cell.source).body
    assert all(isinstance(setting, ast.AnnAssign) for setting in settings), "papermill knows only annotated types"
    assert all(re.search(r"  # \S", line) for line in written) and len(written) == len(settings) <= 12
    values = {setting.target.id: ast.literal_eval(setting.value) for setting in settings}
    assert list(values)[:4] == FIRST and values.pop("resume") is True
    demo = vars(load_params("params/demo.yaml"))
    for name, value in values.items():
        assert value == demo.get(name, value), name


def test_it_follows_the_skeleton(book, path):
    number, stage = path.name[:2], next(s for s in STAGES if s.startswith(path.name[:2]))
    words = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    source = "\n".join(cell.source for cell in code(book))
    shown = rf"!\[Where we are: notebook {number} of nine\]\(attachment:{PICTURE}\)"
    lines = book.cells[0].source.split("\n\n")
    assert re.fullmatch(rf"# {number} · \w.*", lines[0]) and re.fullmatch(shown, lines[1])
    assert re.fullmatch(r"\*\*.+\?\*\*", lines[2]), "the question it answers"
    assert re.match(r"\*In the demo this takes about .+ on two cores\. You will see .+\.\*", lines[3])
    assert "## What we saw" in words
    assert "p = from_notebook(globals())" in source
    assert f'run = open_stage(p, "{stage}", resume=resume)' in source
    assert source.count("run.finish(") == 1
    assert "plots." in source
    following = NOTEBOOKS[(int(number) + 1) % len(NOTEBOOKS)].name
    assert f"]({following})" in book.cells[-1].source


def test_it_shows_where_it_stands_before_anything_has_run(book):
    assert base64.b64decode(book.cells[0].attachments[PICTURE]["image/png"])[:4] == b"\x89PNG"
    assert not any(cell.get("attachments") for cell in book.cells[1:])


def test_each_notebook_has_a_place_of_its_own_in_the_picture():
    assert list(STEPS) == [path.name[:2] for path in NOTEBOOKS]
    assert len({where_we_are(number) for number in STEPS}) == len(STEPS)


def test_it_says_how_long_it_takes(book, path):
    """Within a factor of three of what the shipped run of the demo took, or under ten seconds either way."""
    said = re.search(r"takes about (a|\d+) seconds? on two cores", book.cells[0].source)[1]
    summary = json.loads((path.parents[1] / "outputs" / "example" / "summary.json").read_text())
    (took,) = [seconds for stage, seconds in summary["seconds"].items() if stage[:2] == path.name[:2]]
    told = 1 if said == "a" else int(said)
    assert max(told, took) < 10 or told / 3 <= took <= 3 * told


def test_it_closes_with_three_questions_whose_answers_are_folded(book, path):
    number, ids = path.name[:2], [cell.id for cell in book.cells]
    (think,) = [cell.source for cell in book.cells if cell.id == f"{number}-think"]
    assert ids.index(f"{number}-think") == len(ids) - 2
    assert len(re.findall(r"^\*\*.+\?\*\*$", think, re.M)) == 3
    assert think.count("<details><summary>One answer</summary>") == think.count("</details>") == 3


def test_a_picture_comes_first_and_the_code_last(book):
    """Of what a notebook shows of its work: no source is listed before its first picture."""
    work = [cell.source for cell in code(book) if "parameters" not in cell.metadata.get("tags", [])]
    pictures = [i for i, source in enumerate(work) if "plots." in source or "watch." in source]
    listings = [i for i, source in enumerate(work) if "source_of(" in source]
    assert pictures[0] < min(listings, default=len(work))


def test_it_calls_the_library_and_defines_no_method_of_its_own(book):
    for cell in code(book):
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda), cell.id
        if "parameters" not in cell.metadata.get("tags", []):
            assert "miniature" not in cell.source, f"{cell.id}: one code path, whatever the images and models"


def test_it_is_thin(book):
    """At most 12 lines of code in a cell and 60 in all, the parameters and empty lines not counted."""
    cells = [cell for cell in code(book) if "parameters" not in cell.metadata.get("tags", [])]
    lines = {cell.id: [line for line in cell.source.splitlines() if line.strip()] for cell in cells}
    assert sum(map(len, lines.values())) <= 60
    for id, its in lines.items():
        assert len(its) <= 12 and all(len(line) <= 120 for line in its), id


def test_it_writes_no_file_by_hand(book):
    """Files are the library's: whole or not at all, and told apart from what a kill has left."""
    for cell in code(book):
        for node in ast.walk(ast.parse(cell.source)):
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            assert name not in WRITERS, cell.id


def test_cells_keep_their_names(book, path):
    """Links, reviews of a difference and the tests below hold on to a cell by its id."""
    number, ids = path.name[:2], [cell.id for cell in book.cells]
    assert ids[:2] == [f"{number}-title", f"{number}-parameters"]
    assert {f"{number}-{name}" for name in ("setup", "saw-text", "saw", "finish")} <= set(ids)
    assert ids.index(f"{number}-setup") < ids.index(f"{number}-saw") <= ids.index(f"{number}-finish")


def test_no_variable_takes_the_name_of_a_parameter(book):
    """Otherwise running the set-up cell a second time in JupyterLab would take it for an edited parameter."""
    for cell in code(book):
        if "parameters" in cell.metadata.get("tags", []):
            continue
        names = set()
        for node in ast.parse(cell.source).body:  # at the top level: what a function calls its own is nobody's concern
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
            elif not isinstance(node, ast.FunctionDef):
                stored = (n for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
                names |= {name.id for name in stored}
        assert not names & FIELDS.keys(), cell.id


def test_a_copy_that_jupyterlab_makes_is_not_the_stage_s_notebook(project):
    for name in ("04_train_the_auditor", "04_train_the_auditor-Copy1", "04_train_the_auditor-Copy12"):
        (project / "notebooks" / f"{name}.ipynb").write_text('run.need("02_disagreement")')
    assert [path.stem for path in notebook_files("04_auditor")] == ["04_train_the_auditor"]
    assert notebook_of("04_auditor") == "notebooks/04_train_the_auditor.ipynb"
    assert list(stage_notebooks(["04_auditor"])) == ["04_auditor"]


# ---- the smoke run -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def manifests(smoke) -> dict:
    folder = smoke / "outputs" / "smoke"
    return {stage: json.loads((folder / stage / "manifest.json").read_text()) for stage in STAGES}


@pytest.fixture(scope="session")
def metrics(manifests) -> dict:
    return {stage: manifest["metrics"] for stage, manifest in manifests.items()}


@pytest.fixture(scope="session")
def p(smoke):
    return load_params(smoke / "params" / "smoke.yaml")


def test_every_stage_is_done_with_its_notebook_beside(smoke, manifests):
    for stage, manifest in manifests.items():
        folder = smoke / "outputs" / "smoke" / stage
        assert (folder / "DONE").is_file() and manifest["status"] == "done"
        executed = nbformat.read(folder / "notebook.ipynb", as_version=4)
        assert all(cell.execution_count for cell in code(executed) if cell.source), stage
        errors = [out for cell in code(executed) for out in cell.outputs if out.output_type == "error"]
        pictures = [out for cell in code(executed) for out in cell.outputs if "image/png" in out.get("data", {})]
        assert not errors and pictures, stage
        keys = [row["key"] for row in jsonl.read(folder / "records.jsonl")]
        assert keys and len(keys) == len(set(keys)), stage


def test_the_counts_tell_the_truth(smoke, manifests, p):
    counts = {stage: manifest["counts"] for stage, manifest in manifests.items()}
    folder = smoke / "outputs" / "smoke"
    assert counts["02_disagreement"]["asked"] == p.baseline_images
    assert counts["04_auditor"]["asked"] == p.grpo_steps * p.grpo_images * p.group_size
    for stage, n in {"02_disagreement": p.baseline_images, "05_audit": p.audit_probes}.items():
        records = jsonl.read(folder / stage / "records.jsonl")
        own = [row for row in records if row["pairing"] == "(Q, I*)"]  # a second question to a picture that was made
        assert counts[stage]["asked"] == len(records) == n + len(own)
        parsed = sum(row["question"] is not None for row in records)
        assert counts[stage]["parsed"] == parsed >= 0.9 * len(records)
        edits = [row for row in own if row["way"] == "edit"]  # their question was put to the original too
        crossed = jsonl.read(folder / stage / RECHECK_FILE)  # findings that were put to the models again
        again = sum(len(row["target"]) for row in crossed)
        assert again == p.repeats * len(crossed) and bool(crossed) == (stage == "05_audit")
        assert again < counts[stage]["target_called"] <= parsed + len(edits) + again
        checks = {(row["picture"], row["check"]) for row in records if row.get("checked")}
        checks |= {(row["base"], row["check"]) for row in records if row.get("checked_before")}
        asked = counts[stage]["target_called"] + len(checks) + len(crossed) * (ELSEWHERE + 1)
        assert counts[stage]["references_called"] <= len(p.references) * asked
    made = jsonl.read(folder / "05_audit" / "pictures.jsonl")
    assert 0 < counts["05_audit"]["images_made"] <= len(made)
    for stage in STAGES:
        answers = said(folder / stage)
        assert len(answers) == len(jsonl.read(folder / stage / "answers.jsonl")), f"{stage}: something was asked twice"


def test_what_each_notebook_measured(metrics, manifests, p):
    """Facts about the shipped models and the method; bounds are loose where a smoke run has few samples."""
    assert metrics["01_models"]["models"] == 3 + len(p.references)
    accuracy = metrics["01_models"]["accuracy"]
    assert min(accuracy[name] for name in ("gemma3", "idefics3", "llava")) > 0.9
    assert 0.5 < accuracy["target"] < 0.95

    baseline = metrics["02_disagreement"]
    assert baseline["untrained"]["n"] == baseline["untrained_by_consensus"]["n"] == p.baseline_images
    assert baseline["references_agree"]["value"] > 0.8
    assert baseline["untrained"]["low"] < 0.35, "the planted gaps cover about a fifth of what is asked"
    assert abs(baseline["untrained"]["value"] - baseline["untrained_by_consensus"]["value"]) < 0.15

    assert metrics["03_counterfactual"]["made"] == manifests["03_counterfactual"]["counts"]["images_made"] > 0
    assert metrics["04_auditor"]["steps"] == p.grpo_steps
    assert metrics["04_auditor"]["checkpoints"] == p.grpo_checkpoints

    last = list(checkpoint_shares(["untrained", *map(str, range(p.grpo_checkpoints))], p.audit_probes).values())[-1]
    assert last / len(p.ways) - 3 <= metrics["05_audit"]["trained"]["n"] <= last, "questions of the last checkpoint"
    ways = metrics["05_audit"]["ways"]
    assert set(ways) == set(p.ways) and all(ways[way]["probes"] > 0 for way in ways)
    assert sum(way["probes"] for way in ways.values()) == manifests["05_audit"]["counts"]["asked"]
    assert metrics["05_audit"]["editor"]["command_applied"]["value"] > 0.8
    assert metrics["05_audit"]["generator"]["objects_present"]["value"] > 0.8
    assert metrics["05_audit"]["best_blind_question"]["rate"]["n"] == p.blind_images // 2
    gates = metrics["05_audit"]["gates"]
    assert list(gates) == ["none", "consensus", *p.gates, "all"]
    assert all(gate["kept"] + gate["dropped"] == gates["none"]["kept"] for gate in gates.values())
    assert gates["all"]["kept"] == metrics["06_findings"]["findings"], "what falls through a gate is no finding"
    estimated = metrics["06_findings"]["false_share"]
    assert estimated.keys() == {"leave_one_out", "held_out"} and estimated["held_out"]["knows"]["value"] > 0.9
    assert 0 <= estimated["held_out"]["against_all"] <= estimated["held_out"]["contested"]

    findings = metrics["06_findings"]
    assert findings["findings"] == manifests["05_audit"]["counts"]["findings"] > 0
    assert 1 <= findings["types"] <= p.failure_types
    assert findings["planted"] >= 24 and findings["precision"]["value"] > 0.8
    assert findings["types_against_gaps"]["purity"]["value"] > 0.3 and manifests["06_findings"]["counts"]["peer_called"]

    assert metrics["07_rectify"]["pairs"] == findings["findings"]
    assert metrics["07_rectify"]["steps"] == p.rectify_steps

    assert metrics["08_benchmark"]["untouched"]["describe the board"]["before"]["value"] > 0.95
    assert metrics["08_benchmark"]["outside_gaps"]["before"]["value"] > 0.9
    benchmarks = metrics["08_benchmark"]["benchmarks"]
    assert len(benchmarks) == 16 and all(set(sides) == {"before", "after", "peer"} for sides in benchmarks.values())
    assert {side["n"] for sides in benchmarks.values() for side in sides.values()} == {p.benchmark_examples}


def test_the_stage_files_are_what_the_report_reads(smoke, metrics, p):
    folder = smoke / "outputs" / "smoke"
    history = jsonl.read(folder / "04_auditor" / "history.jsonl")
    assert [row["step"] for row in history] == list(range(1, p.grpo_steps + 1))
    assert all(0 <= row["flat_groups"] <= 1 and row["kinds_lately"] >= row["kinds"] for row in history)
    scored = jsonl.read(folder / "05_audit" / "scored.jsonl")
    assert len(scored) >= p.audit_probes and {row["outcome"] for row in scored} <= set(OUTCOMES)
    types = json.loads((folder / "06_findings" / "types.json").read_text())
    assert sum(kind["size"] for kind in types) == metrics["06_findings"]["findings"]
    for kind in types:
        assert kind["peer"]["n"] == kind["target"]["n"] == len(kind["asked"]) and set(kind["gap"]) == {"name", "share"}
        for example in kind["examples"]:
            assert (folder / "06_findings" / "images" / f"{slug(example['picture'])}.png").is_file()
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["search_success"]) == {"untrained", "trained", "best_blind_question"}
    assert all({"peer", "gap"} <= set(kind) for kind in summary["findings"]["by_type"].values())
    assert set(summary["seconds"]) == set(STAGES)
    assert summary["planted_gaps"]["planted"] == metrics["06_findings"]["planted"]
    assert "no stage" not in (folder / "report.html").read_text() and (folder / "report.html").stat().st_size > 50_000


def test_every_stage_lists_the_files_it_ended_with(smoke):
    for stage in STAGES:
        folder = smoke / "outputs" / "smoke" / stage
        assert damage(folder) == {} and "records.jsonl" in listed_files(folder), stage
        assert not list(folder.glob("checkpoints")) and not list(folder.glob("damaged")), stage
    assert "adapter/adapter_model.safetensors" in listed_files(smoke / "outputs" / "smoke" / "07_rectify")
    made = [name for name in listed_files(smoke / "outputs" / "smoke" / "05_audit") if name.startswith("pictures/")]
    assert len(made) == len(list((smoke / "outputs" / "smoke" / "05_audit" / "pictures").glob("*.png"))) > 0


def test_a_run_with_the_demo_s_parameters_is_exported(smoke, tmp_path):
    """Its keys differ in a plus sign alone, as untrained/00620 and untrained/+00620."""
    told = export_run(smoke / "outputs" / "smoke", tmp_path / "out")
    exported = jsonl.read(tmp_path / "out" / "findings" / "metadata.jsonl")
    found = [row for row in rows(smoke / "outputs/smoke/05_audit/scored.jsonl") if row["outcome"] == "finding"]
    assert [row["key"] for row in exported] == [row["key"] for row in found] and told["findings"] == len(found) > 0
    names = {file.name for file in (tmp_path / "out" / "findings" / "images").iterdir()}
    assert names == {f"{slug(row['key'])}.png" for row in found} and len(names) == len(found)


def test_what_was_learnt_leads_back_to_the_audit(smoke):
    folder = smoke / "outputs" / "smoke" / "07_rectify"
    traced, asked = jsonl.read(folder / "training.jsonl"), {}
    for row in traced:
        found = probe_of(folder, row["key"])
        assert (found is None) == (row["kind"] == "original")
        asked |= {found["key"]: found} if found else {}
    scored = [
        row
        for row in jsonl.read(folder.parent / "05_audit" / "scored.jsonl")
        if row["outcome"] in ("finding", "agrees")
    ]
    repeats = json.loads((folder / "manifest.json").read_text())["counts"]["near_duplicates"]
    assert asked.keys() <= {row["key"] for row in scored} and {row["run"] for row in traced if "run" in row} == {
        "smoke"
    }
    assert 0.8 * len(scored) <= len(asked) <= len(scored) - repeats, "frequent types and answers are learnt in part"


def test_what_a_notebook_shows_is_written_for_a_reader(smoke):
    """No dictionary, NaN, bare number, text in quotation marks, line feed as two signs, placeholder, or 1 of many; no
    warning of a library; one line for all of a work's progress.
    """
    for stage in STAGES:
        executed = nbformat.read(smoke / "outputs" / "smoke" / stage / "notebook.ipynb", as_version=4)
        for cell in code(executed):
            said = [out for out in cell.outputs if out.output_type == "stream"]
            assert len({out.name for out in said}) == len(said) and all(out.name == "stdout" for out in said), cell.id
            told = [out.data for out in cell.outputs if "data" in out and not SOURCE & {cell.id}]
            texts = [out.text for out in said]
            texts += [re.sub(r"<[^>]+>", " ", data["text/html"]) for data in told if "text/html" in data]
            shown = "\n".join(texts)
            assert not re.search(
                r"\r|\bnan\b|\{[a-z_]+\}|\{'|\\n|Warning|site-packages|\b1 [a-z-]+s\b(?! \()", shown
            ), (
                cell.id,
                shown,
            )
            for data in told:  # what is not shown as a table, a figure or a widget would be Python's own writing of it
                assert set(data) - {"text/plain"}, f"{cell.id}: {data}"
            assert shown.count(" so far") == 0, f"{cell.id}: the progress that is over"


def test_what_is_true_of_its_figures_is_what_the_report_says(smoke, metrics):
    page = (smoke / "outputs" / "smoke" / "report.html").read_text()
    repaired = metrics["07_rectify"]
    assert f"fine-tuned on {repaired['trained_on']} of {repaired['pairs']} findings" in page
    assert "{" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL), "no placeholder of a gap"


def test_notebook_04_shows_pictures_it_had_painted_and_07_findings(smoke):
    """Whatever the last step asked for, and however many originals come first."""
    (painted,) = [cell for cell in shown(smoke, "04_auditor") if cell.id == "04-wishes"]
    assert "with 0 Axes" not in painted.outputs[0].data["text/plain"]
    (cell,) = [cell for cell in shown(smoke, "07_rectify") if cell.id == "07-set"]
    assert "with 4 Axes" in cell.outputs[-1].data["text/plain"]
    (asked,) = [cell for cell in shown(smoke, "01_models") if cell.id == "01-alone"]
    alone = re.match(r"the target stands alone on (\d+) of 16", asked.outputs[0].text)
    assert alone and int(alone[1]) >= 1


def shown(smoke: Path, stage: str) -> list:
    return code(nbformat.read(smoke / "outputs" / "smoke" / stage / "notebook.ipynb", as_version=4))


def test_running_again_does_nothing_but_write_a_report_that_is_missing(smoke):
    page = smoke / "outputs" / "smoke" / "report.html"
    page.unlink()
    again = auditkit(smoke)
    assert page.is_file() and str(page) in again.stdout
    assert again.returncode == 0 and again.stdout.count("done before, skipped") == len(STAGES), again.stderr


def test_an_audit_that_found_nothing_still_ends_with_a_report(smoke, tmp_path):
    """As if the target had always said what its references say: nothing to repair, and only what stands before."""
    project = make_project(tmp_path / "project")
    for stage in list(STAGES)[:6]:
        shutil.copytree(smoke / "outputs" / "smoke" / stage, project / "outputs" / "smoke" / stage)
    run = project / "outputs" / "smoke"
    flawless = [
        row | {"target": row["consensus"], "disagrees": False, "outcome": "agrees"}
        if row["outcome"] == "finding"
        else row
        for row in rows(run / "05_audit" / "scored.jsonl")
    ]
    (run / "05_audit" / "scored.jsonl").unlink()
    jsonl.append(run / "05_audit" / "scored.jsonl", flawless)
    as_if_ended_so(run / "05_audit")
    done = auditkit(project, "--from", "06")
    assert done.returncode == 0 and f"{run / 'report.html'}\n" in done.stdout, done.stderr
    assert "Nothing was found, so nothing is repaired." in done.stdout
    assert not (run / "07_rectify" / "adapter").exists()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["findings"]["total"] == 0 and summary["rectification"] == {"pairs": 0}
    assert {tuple(sides) for sides in summary["benchmarks"].values()} == {("before", "peer")}
    assert set(summary["held_out_disagreement"]) == {"before"} and "found_gaps" not in summary
    assert "The audit found nothing" in (run / "report.html").read_text()


def test_without_a_person_the_review_is_still_cards_and_a_desk_nobody_sits_at(smoke):
    executed = nbformat.read(smoke / "outputs" / "smoke" / "06_findings" / "notebook.ipynb", as_version=4)
    shown = {cell.id: [dict(out.get("data", {})) for out in cell.outputs] for cell in code(executed)}
    assert any("image/png" in data for data in shown["06-review-cards"])
    assert any("application/vnd.jupyter.widget-view+json" in data for data in shown["06-review"])
    assert "Nobody has reviewed" in shown["06-person"][0]["text/plain"]
    assert not (smoke / "outputs" / "smoke" / "06_findings" / review.FILE).exists()
    assert "review" not in json.loads((smoke / "outputs" / "smoke" / "summary.json").read_text())


def test_the_repair_learns_what_a_person_says(smoke, metrics, tmp_path):
    project = make_project(tmp_path / "project")
    for stage in list(STAGES)[:7]:
        shutil.copytree(smoke / "outputs" / "smoke" / stage, project / "outputs" / "smoke" / stage)
    run = project / "outputs" / "smoke"
    wrong, other = [row for row in rows(run / "05_audit" / "scored.jsonl") if row["outcome"] == "finding"][:2]
    said = [review.decision(wrong, "reject"), review.decision(other, "relabel", "a person's answer")]
    jsonl.append(run / "06_findings" / review.FILE, said)
    done = auditkit(project, "--only", "07")
    assert done.returncode == 0, done.stderr
    measured = json.loads((run / "07_rectify" / "manifest.json").read_text())["metrics"]
    assert measured["pairs"] == metrics["06_findings"]["findings"] - 1
    assert measured["review"]["left_out"] == measured["review"]["relabelled"] == 1
    asked = {row["key"]: row for row in rows(run / "07_rectify" / "records.jsonl")}
    assert wrong["key"] not in asked and asked[other["key"]]["consensus"] == "a person's answer"


# ---- killed in the middle ------------------------------------------------------------------------------------------


def test_a_killed_run_ends_in_the_same_records(smoke, tmp_path):
    """Killed in the middle of 04, and again in 05: what comes out is what came out of the run that nobody disturbed."""
    project = make_project(tmp_path / "project")
    for stage in list(STAGES)[:4]:
        shutil.copytree(smoke / "outputs" / "smoke" / stage, project / "outputs" / "smoke" / stage)
    once, twice = smoke / "outputs" / "smoke", project / "outputs" / "smoke"
    steps = yaml.safe_load((project / "params" / "smoke.yaml").read_text())["grpo_steps"]
    kill_when(project, lambda: len(rows(twice / "04_auditor" / "history.jsonl")) > steps // 2)
    assert not (twice / "04_auditor" / "DONE").exists()
    kill_when(project, lambda: rows(twice / "05_audit" / "answers.jsonl"))
    assert not (twice / "05_audit" / "DONE").exists()
    assert auditkit(project, "--only", "05").returncode == 0

    files = {"04_auditor": ["rollouts", "records"], "05_audit": ["proposals", "records", "scored"]}
    for stage, names in files.items():
        for name in names:
            assert rows(twice / stage / f"{name}.jsonl") == rows(once / stage / f"{name}.jsonl"), f"{stage}/{name}"
        assert said(twice / stage) == said(once / stage), stage
        assert len(said(twice / stage)) == len(rows(twice / stage / "answers.jsonl")), f"{stage}: something asked twice"
    metrics = [json.loads((run / "05_audit" / "manifest.json").read_text())["metrics"] for run in (once, twice)]
    for measured in metrics:
        measured["images"].pop("seconds_each")
    assert metrics[0] == metrics[1]


def test_what_a_finished_stage_has_lost_is_made_again_as_it_was(smoke, tmp_path):
    stage, name = "07_rectify", "adapter"
    project = make_project(tmp_path / "project")
    for earlier in [one for one in STAGES if one <= stage]:
        shutil.copytree(smoke / "outputs" / "smoke" / earlier, project / "outputs" / "smoke" / earlier)
    folder, once = project / "outputs" / "smoke" / stage, smoke / "outputs" / "smoke" / stage
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    later = f"{int(stage[:2]) + 1:02}"
    refused = auditkit(project, "--only", later)
    assert refused.returncode == 2 and f"{stage} is not whole: {name}" in refused.stderr, refused.stderr
    assert f"auditkit run params/smoke.yaml --only {stage[:2]}" in refused.stderr
    again = auditkit(project, "--only", stage[:2])
    assert again.returncode == 0, again.stderr
    now, before = listed_files(folder), listed_files(once)
    same = [file for file in before if file.startswith(name)]
    assert same and {file: now[file] for file in same} == {file: before[file] for file in same}
    assert json.loads((folder / "manifest.json").read_text())["id"] == manifest_id(once), "what is built on it stands"


def manifest_id(folder: Path) -> str:
    return json.loads((folder / "manifest.json").read_text())["id"]


def said(folder: Path) -> dict:
    return {(row["model"], row["picture"], row["question"]): row["answer"] for row in rows(folder / "answers.jsonl")}


def rows(path: Path) -> list[dict]:
    """The whole lines of a file that somebody may be writing to."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def kill_when(project: Path, condition) -> None:
    """Start the smoke run and kill its whole process group as soon as the condition holds."""
    command = [sys.executable, "-m", "auditkit.cli", "run", "params/smoke.yaml"]
    with open(project / "killed.log", "a") as log:
        process = subprocess.Popen(command, cwd=project, stdout=log, stderr=log, start_new_session=True)
        until = time.monotonic() + 900
        while not condition():
            assert process.poll() is None, (project / "killed.log").read_text()
            assert time.monotonic() < until, "waited in vain"
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
