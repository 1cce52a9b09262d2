"""Findings travel: what is exported can be loaded by others, tells where it comes from, and leaves only when told."""

import base64
import json
import re
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer

import datasets
import huggingface_hub
import pytest
from huggingface_hub import DatasetCard, ModelCard
from PIL import Image

from auditkit import stats
from auditkit.cli import main
from auditkit.counterfactual.store import IMAGES_FILE, Counterfactual, with_counterfactuals
from auditkit.data.load import load_images
from auditkit.errors import AuditError
from auditkit.findings import review
from auditkit.params import load_params
from auditkit.report.export import export_run
from auditkit.runs import jsonl
from auditkit.text import slug

HOSTILE = "what is <img src=x onerror=alert(1)> | [here](http://evil.example) `x` ```?"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run(project):
    """outputs/one of a project: an audit of boards with twelve findings, one on a made picture, and a repair."""
    return make_run(project / "outputs" / "one", project)


def stage(run, name, parameters, metrics=None):
    (run / name).mkdir(parents=True)
    manifest = {"id": f"id-{name}", "metrics": metrics or {}, "seconds": 1.0, "versions": {"python": "3.11"}}
    (run / name / "manifest.json").write_text(json.dumps(manifest | {"parameters": parameters}))
    (run / name / "DONE").touch()
    return run / name


def make_run(run, project):
    parameters = asdict(load_params(project / "params/demo.yaml"))
    parameters |= {
        "target": str(project / "models" / "mine"),
        "references": ["miniature:gemma3", "http://h.lan/v1#o/big"],
    }
    audit = stage(run, "05_audit", parameters, {"precision": stats.rate(11, 12)})
    scored = []
    for n in range(16):
        row = {"key": f"step {n % 2}/{n:05d}", "picture": f"audit-0-{n}", "question": f"what colour is at a{n}?"}
        row |= {
            "outcome": "finding" if n < 12 else "agrees",
            "target": "blue",
            "consensus": "red" if n < 12 else "blue",
        }
        row |= {"references": {"gemma3": "red", "big": "red"}, "way": "question", "pairing": "(Q*, I)"}
        scored.append(row | {"checkpoint": f"step {n % 2}", "base": None, "made": None})
    scored[3] |= {"question": HOSTILE, "consensus": "2"}
    made = Image.new("RGB", (64, 64), (9, 9, 200))
    (audit / "pictures").mkdir()
    made.save(audit / "pictures" / "made-1.png")
    one = Counterfactual("made-1", "edit", "audit-0-5", "paint it blue", 0, "editor")
    jsonl.append(audit / IMAGES_FILE, [asdict(one)])
    scored[5] |= {"key": "step 1/00005/own", "picture": "made-1", "base": "audit-0-5", "made": "paint it blue"}
    scored[5] |= {"way": "edit", "pairing": "(Q, I*)"}
    jsonl.append(audit / "scored.jsonl", scored)
    findings = stage(run, "06_findings", parameters)
    kinds = [(HOSTILE, [scored[3]["key"]]), ("colours", [row["key"] for row in scored[:12] if row is not scored[3]])]
    types = [
        {"name": name, "keys": keys, "size": len(keys), "share": 0.5, "rate": stats.rate(1, 2)} for name, keys in kinds
    ]
    (findings / "types.json").write_text(json.dumps(types))
    repair = stage(run, "07_rectify", parameters, {"pairs": 12, "trained_on": 12, "steps": 6})
    (repair / "adapter").mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": str(project / "models" / "mine")}
    (repair / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    (repair / "adapter" / "README.md").write_text(f"base: {project}")
    (repair / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    return run


def records(run) -> dict:
    return {row["key"]: row for row in jsonl.read(run / "05_audit" / "scored.jsonl")}


@pytest.mark.parametrize("where", ["findings", "."])
def test_what_is_exported_loads_as_an_image_folder_and_leads_back_to_its_probe(run, tmp_path, where):
    told = export_run(run, tmp_path / "out")
    assert told == {"findings": 12, "rejected": 0, "relabelled": 0, "adapter": 1}
    found = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out" / where), split="train")
    probes = records(run)
    assert set(found["key"]) == {key for key, row in probes.items() if row["outcome"] == "finding"}
    source = with_counterfactuals(load_images("miniature"), run / "05_audit")
    for row in found:
        probe = probes[row["key"]]
        assert row["image"].tobytes() == source.picture(probe["picture"]).image.tobytes(), "as the target saw it"
        assert (row["answer"], row["answer_by"], row["review"]) == (probe["consensus"], "consensus", "not reviewed")
        for name in (
            "question",
            "target",
            "references",
            "consensus",
            "way",
            "pairing",
            "checkpoint",
            "picture",
            "outcome",
        ):
            assert row[name] == probe[name], name
        assert row["failure_type"] == (HOSTILE if probe["question"] == HOSTILE else "colours")
        assert (row["base"], row["made"]) == (probe["base"] or "", probe["made"] or "")
        assert (tmp_path / "out" / "findings" / "images" / f"{slug(row['key'])}.png").is_file(), "and back"


def test_a_question_and_a_further_candidate_of_the_same_number_have_a_picture_each(run, tmp_path):
    """The plus sign of `step 0/+00000` is all that tells it from `step 0/00000` (counterfactual_candidates: 2)."""
    rows = jsonl.read(run / "05_audit" / "scored.jsonl")
    rows[2]["key"], other = "step 0/+00000", rows[2]["key"]
    jsonl.replace(run / "05_audit" / "scored.jsonl", rows)
    types = (run / "06_findings" / "types.json").read_text()
    (run / "06_findings" / "types.json").write_text(types.replace(other, "step 0/+00000"))
    assert export_run(run, tmp_path / "out")["findings"] == 12
    found = jsonl.read(tmp_path / "out" / "findings" / "metadata.jsonl")
    names = {row["key"]: row["file_name"] for row in found}
    assert names["step 0/00000"] != names["step 0/+00000"]
    assert names == {key: f"images/{slug(key)}.png" for key in names}
    assert len(set(names.values())) == len(list((tmp_path / "out" / "findings" / "images").iterdir())) == 12
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out" / "findings"), split="train")
    source = with_counterfactuals(load_images("miniature"), run / "05_audit")
    for row in loaded:
        assert row["image"].tobytes() == source.picture(row["picture"]).image.tobytes(), row["key"]


def test_keys_that_a_file_name_cannot_hold_have_a_picture_each(run, tmp_path):
    rows, other = jsonl.read(run / "05_audit" / "scored.jsonl"), ["step 0//00000", "Step 0/00000", "step 0-00000"]
    types = (run / "06_findings" / "types.json").read_text()
    for row, key in zip(rows[1:4], other, strict=True):
        types = types.replace(json.dumps(row["key"]), json.dumps(key))
        row["key"] = key
    jsonl.replace(run / "05_audit" / "scored.jsonl", rows)
    (run / "06_findings" / "types.json").write_text(types)
    assert export_run(run, tmp_path / "out")["findings"] == 12
    names = {file.name.lower() for file in (tmp_path / "out" / "findings" / "images").iterdir()}
    assert len(names) == 12, "also where a disk takes capitals and small letters for the same"


def test_the_folder_is_a_data_set_of_its_own_with_its_card(run, tmp_path):
    """As it would be on the hub, where nobody says imagefolder."""
    export_run(run, tmp_path / "out")
    found = datasets.load_dataset(str(tmp_path / "out" / "findings"), split="train")
    assert len(found) == 12 and "label" not in found.features


def test_the_cards_tell_what_it_is_and_nothing_comes_alive_in_them(run, tmp_path, project):
    export_run(run, tmp_path / "out", "me/found")
    card = DatasetCard.load(tmp_path / "out" / "findings" / "README.md")
    assert card.data.task_categories == ["visual-question-answering"] and card.data.size_categories == ["n<1K"]
    made = "| edit, (Q, I\\*) | 1 |"
    true = "91.7 % of the findings (64.6 to 98.5 %, n = 12"
    for fact in ("12 pictures and questions", "| target | mine |", "miniature:gemma3, o/big", "16 probes", made, true,
                 "audit id-05_audit", "quorum: 0.6"):  # fmt: skip
        assert fact in card.text, fact
    body = re.sub(r"```.*?\n```", "", card.text, flags=re.S)
    assert "<img" not in body.replace("\\<img", "") and "](http://evil" not in body and "\\`x\\`" in body

    model = ModelCard.load(tmp_path / "out" / "adapter" / "README.md")
    assert (model.data.library_name, model.data.base_model, model.data.datasets) == ("peft", None, ["me/found"])
    assert 'vlm.load("mine", adapter="adapter")' in model.text and "12 findings" in model.text
    for file in (tmp_path / "out").rglob("*"):
        if file.suffix in (".md", ".json", ".jsonl"):
            assert str(project) not in file.read_text() and "h.lan" not in file.read_text(), file.name
    assert json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "mine"


def test_a_base_model_of_the_hub_is_named_as_the_hub_wants_it(run, tmp_path):
    for name in ("05_audit", "06_findings", "07_rectify"):
        manifest = json.loads((run / name / "manifest.json").read_text())
        manifest["parameters"]["target"] = "google/paligemma2-3b-mix-448?max_pixels=5000"
        (run / name / "manifest.json").write_text(json.dumps(manifest))
    export_run(run, tmp_path / "out")
    model = ModelCard.load(tmp_path / "out" / "adapter" / "README.md")
    assert model.data.base_model == "google/paligemma2-3b-mix-448" and 'from_pretrained("google/pali' in model.text


def test_what_a_person_rejected_stays_and_their_answer_travels(run, tmp_path):
    probes = list(records(run).values())
    said = [review.decision(probes[0], "reject"), review.decision(probes[1], "relabel", "pink")]
    jsonl.append(run / "06_findings" / review.FILE, [*said, review.decision(probes[2], "accept")])
    told = export_run(run, tmp_path / "out")
    assert told == {"findings": 11, "rejected": 1, "relabelled": 1, "adapter": 1}
    found = {row["key"]: row for row in jsonl.read(tmp_path / "out" / "findings" / "metadata.jsonl")}
    assert probes[0]["key"] not in found and found[probes[2]["key"]]["review"] == "accepted"
    row = found[probes[1]["key"]]
    assert (row["answer"], row["answer_by"], row["consensus"], row["review"]) == ("pink", "person", "red", "relabelled")
    card = (tmp_path / "out" / "findings" / "README.md").read_text()
    assert "a person rejected 1, which are not here" in card and "but for 1 where a person gave another" in card
    assert "66.7 % of the findings are failures" in card
    assert "exported findings are newer than the adapter" in (tmp_path / "out" / "adapter" / "README.md").read_text()


def test_without_a_repair_the_findings_travel_alone(run, tmp_path):
    (run / "07_rectify" / "DONE").unlink()
    assert export_run(run, tmp_path / "out")["adapter"] == 0 and not (tmp_path / "out" / "adapter").exists()


def test_whole_weights_are_a_model_that_needs_no_other(run, project, tmp_path):
    learnt = run / "07_rectify" / "adapter"
    (learnt / "adapter_config.json").rename(learnt / "config.json")
    (learnt / "config.json").write_text(json.dumps({"_name_or_path": str(project / "models" / "mine")}))
    assert export_run(run, tmp_path / "out")["adapter"] == 1
    card = ModelCard.load(tmp_path / "out" / "adapter" / "README.md")
    assert card.data.library_name == "transformers" and "lora" not in card.data.tags
    assert 'from_pretrained("adapter")' in card.text and "The whole weights of mine" in card.text
    assert json.loads((tmp_path / "out/adapter/config.json").read_text()) == {"_name_or_path": "mine"}


def test_what_cannot_be_exported_is_one_sentence_and_overwrites_nothing(run, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    for arguments, says in {
        ("one", "--out", str(tmp_path / "full")): "is there and not empty; name a new folder",
        ("two", "--out", str(tmp_path / "new")): "No run two: outputs/ holds one",
        (
            "one",
            "--out",
            str(tmp_path / "new"),
            "--push",
            "mine",
        ): "'mine' is no repository of the hub; write OWNER/NAME",
    }.items():
        assert main(["export", *arguments]) == 2
        assert says in capsys.readouterr().err and not (tmp_path / "new").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    (run / "06_findings" / "DONE").unlink()
    with pytest.raises(AuditError, match="06_findings is not done: run notebook"):
        export_run(run, tmp_path / "new")


def test_an_export_that_is_killed_leaves_no_half_of_one(run, tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "append", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        export_run(run, tmp_path / "out")
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    assert export_run(run, tmp_path / "out")["findings"] == 12 and not (tmp_path / "out.part").exists()


# ---- a hub on loopback ---------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload needs: it takes every file inside the commit."""

    created, files, public = [], {}, ()

    def do_GET(self):  # noqa: N802
        found = re.match(r"/api/(models|datasets)/([^/]+/[^/]+)", self.path)
        self.answer({"id": found[2], "private": found[2] not in self.public, "sha": "0" * 40, "siblings": []})

    def do_POST(self):  # noqa: N802
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            self.created.append(asked)
            kind = "datasets/" if asked.get("type") == "dataset" else ""
            self.answer({"url": f"http://{self.headers['Host']}/{kind}{asked['organization']}/{asked['name']}"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif "/commit/" in self.path:
            repository = re.match(r"/api/((?:models|datasets)/[^/]+/[^/]+)", self.path)[1]
            for line in body.decode().splitlines():
                one = json.loads(line)
                if one["key"] == "file":
                    self.files[repository, one["value"]["path"]] = base64.b64decode(one["value"]["content"])
            self.answer({"commitUrl": f"http://{self.headers['Host']}/{repository}/commit/0", "commitOid": "0" * 40})
        else:
            self.answer({"errors": [], "warnings": []})  # the check of a card's header

    def answer(self, what):
        data = json.dumps(what).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    handler = type("Handler", (Hub,), {"created": [], "files": {}, "public": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address, api = f"http://127.0.0.1:{server.server_port}", huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api(endpoint=address, token="hf_of_a_test"))
    yield handler
    server.shutdown()
    server.server_close()


def test_nothing_leaves_this_machine_unasked(run, tmp_path, hub, capsys):
    assert main(["export", "one", "--out", str(tmp_path / "out")]) == 0
    assert hub.created == [] and hub.files == {}
    assert "12 findings: " in capsys.readouterr().out


def test_a_push_makes_two_private_repositories_with_just_these_files(run, tmp_path, hub, capsys):
    assert main(["export", "one", "--out", str(tmp_path / "out"), "--push", "me/found"]) == 0
    assert [(one["organization"], one["name"], one["visibility"]) for one in hub.created] == [
        ("me", "found", "private"),
        ("me", "found-adapter", "private"),
    ]
    for part, repository in (("findings", "datasets/me/found"), ("adapter", "models/me/found-adapter")):
        here = {
            file.relative_to(tmp_path / "out" / part).as_posix(): file.read_bytes()
            for file in (tmp_path / "out" / part).rglob("*")
            if file.is_file()
        }
        there = {path: data for (where, path), data in hub.files.items() if where == repository}
        assert here == there and len(here) >= 3
    assert capsys.readouterr().out.count("pushed, private: ") == 2


def test_a_repository_that_is_public_gets_nothing(run, tmp_path, hub, capsys):
    hub.public.append("me/found")
    assert main(["export", "one", "--out", str(tmp_path / "out"), "--push", "me/found"]) == 2
    assert "me/found is there and public; make it private first" in capsys.readouterr().err
    assert hub.files == {} and (tmp_path / "out" / "findings").is_dir()


def test_a_hub_out_of_reach_is_one_sentence_and_the_export_is_kept(run, tmp_path, monkeypatch, capsys):
    api = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api(endpoint="http://127.0.0.1:9", token="hf_of_a_test"))
    assert main(["export", "one", "--out", str(tmp_path / "out"), "--push", "me/found"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "could not be written" in said and "hf upload me/found" in said
    assert (tmp_path / "out" / "findings" / "metadata.jsonl").is_file()
