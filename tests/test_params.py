"""A parameter file is read whole or refused with one sentence that names the key."""

import ast
import dataclasses
from functools import partial

import nbformat
import pytest
import yaml

from auditkit import session
from auditkit.errors import AuditError
from auditkit.params import (
    DEFAULTS,
    FIELDS,
    REQUIRED,
    Params,
    about,
    as_markdown,
    from_notebook,
    load_params,
    parse_setting,
    project_root,
    resolved,
)


def with_line(project, line: str):
    """The demo's file under another name with one key replaced, or added, by a line of YAML."""
    key = line.split(":")[0]
    kept = [text for text in (project / "params/demo.yaml").read_text().splitlines() if not text.startswith(key + ":")]
    text = "\n".join([*kept, line]).replace("params/demo.yaml", "params/mine.yaml")
    (project / "params/mine.yaml").write_text(text + "\n")
    return "params/mine.yaml"


PRESETS = ["laptop", "gpu_8gb", "gpu_24gb", "gpu_80gb"]
FILES = ["demo", "smoke", "easy_vqa", "gemma3_4b", "paligemma2_3b", *PRESETS]
FIVE_LINES = """
run_name: mine
images: my_pictures
auditor: google/gemma-3-4b-it
target: google/paligemma2-3b-mix-448
references: [google/gemma-3-12b-it, org/other]
"""


@pytest.mark.parametrize("name", FILES)
def test_shipped_files_are_named_after_themselves_and_send_readers_to_the_docs(repository, monkeypatch, name):
    monkeypatch.chdir(repository)
    p = load_params(f"params/{name}.yaml")
    assert (p.run_name, p.params_file) == (name, f"params/{name}.yaml")
    text = (repository / f"params/{name}.yaml").read_text()
    assert "docs/parameters.md explains every key" in text
    assert yaml.safe_load(text)["params_file"] == p.params_file, "papermill -f passes on only what is written here"


def test_five_lines_are_a_file(project):
    (project / "params/mine.yaml").write_text(FIVE_LINES)
    p = load_params("params/mine.yaml")
    assert (p.run_name, p.params_file, p.seed, p.peer, p.ways) == ("mine", "params/mine.yaml", 0, "", ["question"])
    assert REQUIRED == list(yaml.safe_load(FIVE_LINES))
    for name in REQUIRED:
        kept = [line for line in FIVE_LINES.splitlines() if not line.startswith(name)]
        (project / "params/mine.yaml").write_text("\n".join(kept))
        with pytest.raises(AuditError, match=f"mine.yaml: missing {name}; docs/parameters.md explains every key"):
            load_params("params/mine.yaml")


def test_every_value_says_where_it_comes_from(project):
    (project / "params/mine.yaml").write_text(FIVE_LINES + "grpo_steps: 20\n")
    rows = {row.key: row for row in resolved("params/mine.yaml", seed=7, run_name="other")}
    assert list(rows) == list(FIELDS)
    assert (rows["grpo_steps"].value, rows["grpo_steps"].source) == (20, "file")
    assert (rows["seed"].value, rows["seed"].source) == (7, "--set")
    assert (rows["run_name"].value, rows["run_name"].source) == ("other", "--set")
    assert (rows["quorum"].value, rows["quorum"].source) == (0.6, "default")
    assert (rows["params_file"].value, rows["params_file"].source) == ("params/mine.yaml", "file")
    assert rows["grpo_steps"].about.startswith("Optimiser steps")
    with pytest.raises(AuditError, match="did you mean grpo_steps"):
        resolved("params/mine.yaml", grpo_step=3)


def test_every_key_says_what_it_is():
    for name, field in FIELDS.items():
        assert field.description and len(about(name)) > 10, name


def test_the_page_of_parameters_is_current(repository):
    written = (repository / "docs/parameters.md").read_text(encoding="utf-8")
    assert written == as_markdown(), "run: python -m auditkit.params > docs/parameters.md"
    assert all(f"| `{name}` |" in written for name in FIELDS)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("grpo_setps: 3", "unknown key grpo_setps; did you mean grpo_steps?"),
        ("micro_batch: 3", "unknown key micro_batch; did you mean grpo_micro_batch or rectify_micro_batch?"),
        ("resume: true", "unknown key resume;"),
        ("grpo_steps: 2.5", "grpo_steps: expected a whole number, got 2.5"),
        ("grpo_steps: true", "grpo_steps: expected a whole number, got True"),
        ("grpo_steps: '20'", "grpo_steps: expected a whole number, got '20'"),
        ("grpo_learning_rate: 1e-5", "grpo_learning_rate: YAML reads 1e-5 as a string; write 1.0e-5."),
        ("rectify_learning_rate: 3E4", "write 3.0e+4."),
        ("grpo_learning_rate: fast", "grpo_learning_rate: expected a number, got 'fast'"),
        ("grpo_beta: .nan", "grpo_beta: nan is not a number"),
        ("run_name: 3", "run_name: YAML reads this as 3, not as text; put it in quotes."),
        ("peer: no", "peer: YAML reads this as False, not as text; put it in quotes."),
        ("run_name: ../elsewhere", "run_name: '../elsewhere' becomes a folder's name"),
        ("references: miniature:gemma3", "references: expected a list of texts, as in [a, b]"),
        ("references: []", "references: the list is empty"),
        ("references: [a, b, a]", "references: one model is there twice"),
        ("references: [miniature:target, b]", "references: miniature:target is the target"),
        ("target: ''", "one of them is empty"),
        ("group_size: 1", "group_size: 1 is too small, the least is 2: GRPO compares"),
        ("grpo_steps: 0", "grpo_steps: 0 is too small"),
        ("rectify_steps: 0", "rectify_steps: 0 is too small"),
        ("audit_probes: 0", "audit_probes: 0 is too small"),
        ("train_images: 4", "GRPO would train zero steps; raise train_images or lower grpo_images"),
        ("grpo_checkpoints: 9999", "grpo_checkpoints: 9999 cannot be kept from"),
        ("quorum: 0", "quorum: 0.0 is not in (0, 1]"),
        ("quorum: 1.2", "quorum: 1.2 is not in (0, 1]"),
        ("grpo_temperature: 0", "grpo_temperature: 0.0 makes all questions of a group equal"),
        ("grpo_learning_rate: 0", "grpo_learning_rate: 0.0 trains nothing"),
        ("same: meaning", 'same: "meaning" is none of text, embedding, or a model'),
        ("dtype: fp16", "dtype: 'fp16' is not one of"),
        ("references: [mine/target]", "two of target, target have one name"),
        ("peer: mine/target/", "peer: mine/target/ has the target's name"),
        ("grpo_lora_rank: 0", "grpo_lora_rank: 0 is too small"),
        ("device: gpu", "device: 'gpu' is not one of"),
        ("seed: 1\nseed: 2", "seed is given twice"),
        (
            "params_file: params/other.yaml",
            "params_file says 'params/other.yaml'; write the file's own name, params/mine",
        ),
        ("edit_region: 0", "edit_region: 0.0 is not in (0, 1], a share of the picture"),
        ("edit_rest: 1.5", "edit_rest: 1.5 is not in [0, 1], a similarity"),
        ("picture_gain: 1", "picture_gain: 1.0 is not in [0, 1), the cosine to be above"),
        ("grpo_quorum: 2", "grpo_quorum: 2.0 is not in (0, 1], as for quorum"),
        ("grpo_warmup: 1", "grpo_warmup: 1.0 is the share of the steps that warm up; write less than 1"),
        ("grpo_beta: -1", "grpo_beta: -1.0 is too small, the least is 0."),
        ("max_question_tokens: 3", "max_question_tokens: 3 is too small, the least is 4."),
        ("grpo_beta: true", "grpo_beta: expected a number, got True"),
        ("grpo_beta: '0.5'", "grpo_beta: expected a number, got '0.5'"),
        ("dtype: 16", "dtype: YAML reads this as 16, not as text; put it in quotes."),
        ("ways: [question, draw]", "ways: 'draw' is not one of question, regenerate, edit."),
        ("ways: question", "ways: expected a list of texts, as in [a, b], got 'question'"),
        ("ways: [1]", "ways: expected a list of texts, as in [a, b], got [1]"),
        ("gates: [sounds]", "gates: 'sounds' is not one of reproduces, sound, visual."),
        ("peer: a/b?bit=4", "unknown option bit; did you mean bits?"),
        ("seed: [", "not readable as YAML"),
    ],
)
def test_what_cannot_work_is_refused_by_name(project, line, said):
    with pytest.raises(AuditError) as error:
        load_params(with_line(project, line))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_setting_that_is_no_yaml_is_refused():
    with pytest.raises(AuditError, match=r"--set references=\[a: not readable; a list is written as in"):
        parse_setting("references=[a")


def test_missing_keys_files_and_contents_are_named(project):
    (project / "params/short.yaml").write_text("run_name: short\nparams_file: params/short.yaml\n")
    with pytest.raises(AuditError, match="missing images, auditor, target, references"):
        load_params("params/short.yaml")
    (project / "params/empty.yaml").write_text("")
    with pytest.raises(AuditError, match="empty.yaml: expected lines of `key: value`"):
        load_params("params/empty.yaml")
    with pytest.raises(AuditError, match=r"No parameter file params/dmeo.yaml: did you mean params/demo.yaml\?"):
        load_params("params/dmeo.yaml")


def test_the_command_line_writes_values_as_a_person_would(project):
    given = ["run_name=7", "grpo_learning_rate=1e-5", "references=[a, b]", "grpo_steps=20", "peer="]
    p = load_params("params/demo.yaml", **dict(parse_setting(text) for text in given))
    assert (p.run_name, p.grpo_learning_rate, p.references, p.grpo_steps, p.peer) == ("7", 1e-5, ["a", "b"], 20, "")
    with pytest.raises(AuditError, match="write key=value"):
        parse_setting("grpo_steps")
    with pytest.raises(AuditError, match="did you mean grpo_steps"):
        parse_setting("grpo_step=3")
    with pytest.raises(AuditError, match="grpo_beta: expected a number"):
        load_params("params/demo.yaml", **dict([parse_setting("grpo_beta=small")]))


def test_the_project_folder_is_found_from_inside_it(project, monkeypatch):
    (project / "notebooks/deeper").mkdir()
    monkeypatch.chdir(project / "notebooks/deeper")
    assert project_root() == project
    assert load_params("params/demo.yaml").params_file == "params/demo.yaml"


def cell(**changed) -> dict:
    """The names of a notebook after its parameters cell, a few of them edited."""
    demo = load_params("params/demo.yaml")
    names = {name: getattr(demo, name) for name in ("run_name", "params_file", "seed", "grpo_steps", "audit_probes")}
    own = {"show": int, **{name: type(value) for name, value in names.items()}}
    return {"__annotations__": own, "show": 6, "resume": True, **names, **changed}


def test_an_untouched_notebook_runs_the_demo(project):
    assert from_notebook(cell()) == load_params("params/demo.yaml")


def test_an_edited_parameters_cell_wins_over_the_file(project):
    assert from_notebook(cell(grpo_steps=7)) == load_params("params/demo.yaml", grpo_steps=7)


def test_a_variable_that_is_only_named_like_a_parameter_is_none(project):
    assert from_notebook(cell(images=["a picture"], quorum=None)) == load_params("params/demo.yaml")


def test_editing_params_file_alone_switches_to_that_file(project):
    assert from_notebook(cell(params_file="params/smoke.yaml")) == load_params("params/smoke.yaml")


def test_what_papermill_injects_wins_even_where_it_equals_the_default(project):
    steps = load_params("params/demo.yaml").grpo_steps
    injected = f'# Parameters\nparams_file = "params/smoke.yaml"\ngrpo_steps = {steps}\n'
    names = cell(params_file="params/smoke.yaml", In=["", "run_name: str = 'demo'", injected])
    assert from_notebook(names) == load_params("params/smoke.yaml", grpo_steps=steps)


def test_papermill_with_a_whole_file_takes_that_file_and_its_silent_keys_from_the_defaults(project):
    """papermill -f injects what the file states; its params_file line says where the rest comes from."""
    written = yaml.safe_load((project / "params/smoke.yaml").read_text())
    injected = "# Parameters\n" + "\n".join(f"{name} = {value!r}" for name, value in written.items())
    assert from_notebook(cell(**written, In=["", injected])) == load_params("params/smoke.yaml")


def test_papermill_with_a_file_of_ones_own_takes_nothing_from_the_demo(project):
    """Its silent keys come from the defaults: no peer, no painters and no ways of another run."""
    written = yaml.safe_load(FIVE_LINES)
    injected = "# Parameters\n" + "\n".join(f"{name} = {value!r}" for name, value in written.items())
    p = from_notebook(cell(**written, In=["", injected]))
    (project / "params/mine.yaml").write_text(FIVE_LINES)
    assert dataclasses.replace(p, params_file="params/mine.yaml") == load_params("params/mine.yaml")
    assert (p.peer, p.generator, p.ways, p.params_file) == ("", "", ["question"], "")


def test_papermill_with_images_of_ones_own_alone_says_what_is_missing(project):
    names = cell(images="photos", In=["", '# Parameters\nimages = "photos"\n'])
    with pytest.raises(AuditError, match="given to the notebook: missing run_name, auditor, target, references"):
        from_notebook(names)


def test_what_a_notebook_runs_is_shown(project, capsys):
    from_notebook(cell(grpo_steps=7))
    *rows, last = capsys.readouterr().out.splitlines()
    shown = {row.split()[0]: row.split()[1:] for row in rows}
    assert last == "demo: params/demo.yaml" and shown["grpo_steps"] == ["7", "this", "cell"]
    assert shown["audit_probes"] == [str(load_params("params/demo.yaml").audit_probes), "demo.yaml"]
    assert shown["seed"] == ["0", "default"] and set(shown) == {"parameter", *cell()["__annotations__"]} - {"show"}


def test_with_another_file_the_values_that_hold_are_shown_and_not_the_cell_s(project, capsys):
    """The cell says 90 steps, the file 6; peer stands in neither cell nor file."""
    smoke = load_params("params/smoke.yaml")
    names = cell(params_file="params/smoke.yaml", quorum=DEFAULTS["quorum"])
    names["__annotations__"] |= {"quorum": float}
    from_notebook(names)
    shown = {row.split()[0]: row.split(maxsplit=2)[1:] for row in capsys.readouterr().out.splitlines()}
    assert shown["grpo_steps"] == [str(smoke.grpo_steps), "smoke.yaml"] != [str(names["grpo_steps"]), "smoke.yaml"]
    assert shown["run_name"] == ["smoke", "smoke.yaml"] and shown["params_file"] == ["params/smoke.yaml", "this cell"]
    assert shown["quorum"] == ["0.6", "default"]


def test_a_value_that_the_command_line_gave_says_so(project, capsys):
    written = yaml.safe_load((project / "params/smoke.yaml").read_text()) | {"seed": 5}
    injected = "# Parameters\n" + "\n".join(f"{name} = {value!r}" for name, value in written.items())
    from_notebook(cell(**written, In=["", injected]))
    shown = {row.split()[0]: row.split(maxsplit=2)[1:] for row in capsys.readouterr().out.splitlines()}
    assert shown["seed"] == ["5", "given to this notebook"] and shown["grpo_steps"][1] == "smoke.yaml"


def test_a_run_is_chosen_once_for_all_notebooks_of_a_jupyterlab(project, capsys):
    first = cell(params_file="params/smoke.yaml", for_all_notebooks=True)
    first["__annotations__"] |= {"for_all_notebooks": bool}
    assert from_notebook(first).run_name == "smoke"
    assert "other notebooks of this JupyterLab follow" in capsys.readouterr().out
    assert from_notebook(cell()) == load_params("params/smoke.yaml"), "an untouched cell follows"
    assert "notebook 00" in capsys.readouterr().out
    assert from_notebook(cell(run_name="mine")) == load_params("params/smoke.yaml", run_name="mine"), (
        "an edited one rules"
    )
    from_notebook(cell(params_file="params/demo.yaml", In=["", '# Parameters\nparams_file = "params/demo.yaml"\n']))
    assert capsys.readouterr().out.endswith("demo: params/demo.yaml\n"), "nor does papermill follow"
    first["params_file"] = "params/demo.yaml"
    assert from_notebook(first).run_name == "demo" == from_notebook(cell()).run_name, "and it is taken back there"


def test_what_was_chosen_in_another_jupyterlab_does_not_hold(project):
    session.choose(project, run_name="x", params_file="params/smoke.yaml")
    assert session.chosen(project) == {"run_name": "x", "params_file": "params/smoke.yaml"}
    file = project / session.FILE
    file.write_text(file.read_text().replace('"server": [', '"server": [1'))
    assert session.chosen(project) == {} and from_notebook(cell()) == load_params("params/demo.yaml")
    for damaged in ("", "[]", '{"server": 1}', "null"):
        file.write_text(damaged)
        assert session.chosen(project) == {}


def test_an_injected_name_nobody_knows_is_an_error(project):
    with pytest.raises(AuditError, match="unknown key grpo_stpes; did you mean grpo_steps"):
        from_notebook(cell(grpo_stpes=3, In=["# Parameters\ngrpo_stpes = 3\n"]))
    from_notebook(cell(show=3, resume=False, In=["# Parameters\nshow = 3\nresume = False\n"]))  # its own names


def test_a_value_typed_into_a_notebook_is_checked_like_the_files(project):
    with pytest.raises(AuditError, match="seed: expected a whole number"):
        from_notebook(cell(seed="1"))


def test_params_cannot_be_changed_behind_a_runs_back(project):
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_params("params/demo.yaml").seed = 3
    assert all(field.kw_only for field in dataclasses.fields(Params))


def test_every_notebook_starts_from_the_demos_values(repository, monkeypatch):
    """`from_notebook` tells an edited value from a default by this."""
    monkeypatch.chdir(repository)
    demo = vars(load_params("params/demo.yaml"))
    for path in sorted((repository / "notebooks").glob("*.ipynb")):
        cells = [cell for cell in nbformat.read(path, 4).cells if "parameters" in cell.metadata.get("tags", [])]
        assert len(cells) == 1, path.name
        body = ast.parse(cells[0].source).body
        assert all(isinstance(line, ast.AnnAssign) for line in body), f"{path.name}: annotate every parameter"
        names = {line.target.id: ast.literal_eval(line.value) for line in body}
        assert list(names)[:4] == ["run_name", "params_file", "seed", "resume"] and len(names) <= 12, path.name
        for name in names.keys() & demo.keys():
            assert names[name] == demo[name], (
                f"{path.name}: {name} is {names[name]!r}, params/demo.yaml has {demo[name]!r}"
            )


def test_rays_workers_have_a_gpu_of_their_own(project):
    load_params("params/demo.yaml", engine="local", device="cuda:1")
    with pytest.raises(AuditError, match="device: under engine: ray .* so cuda:1 cannot be had; write auto"):
        load_params("params/demo.yaml", engine="ray", device="cuda:1")


def test_one_model_asked_in_two_ways_stands_in_one_run(repository):
    load = partial(load_params, repository / "params" / "smoke.yaml", target="miniature:target")
    assert load(references=["miniature:clean", "miniature:clean?bits=4"]).references[1] == "miniature:clean?bits=4"
    load(references=["a/clean", "b/clean?name=theirs"])
    with pytest.raises(AuditError, match=r"have one name, .* or write \?name=NAME behind one"):
        load(references=["a/clean", "b/clean"])
