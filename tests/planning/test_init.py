"""`auditkit init`: a parameter file for a model and pictures of one's own, and one sentence where there can be none."""

import io
import json
import shutil
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tiny
import yaml
from huggingface_hub import constants
from PIL import Image
from smoke_run import make_project

from auditkit.cli import main
from auditkit.errors import AuditError
from auditkit.miniature import easy, shipped
from auditkit.params import FIELDS, load_params
from auditkit.planning import init, sizes
from auditkit.planning.pipeline_memory import pipeline_parts
from auditkit.planning.plan import Machine, refuse_misfit

CHANGED = ("run_name", "params_file", "images", "target")  # by what is asked for


def hub_at(port: int, monkeypatch, cache) -> None:
    """What HF_ENDPOINT and HF_HUB_CACHE do, which are read when the library is imported."""
    address = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """A hub at a port where nothing listens, and an empty cache."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        hub_at(free.getsockname()[1], monkeypatch, tmp_path / "cache")
    for known in (sizes.look_up, pipeline_parts):
        known.cache_clear()
    yield
    for known in (sizes.look_up, pipeline_parts):
        known.cache_clear()


@pytest.fixture
def gated_hub(monkeypatch, tmp_path):
    """A server on loopback that refuses Google's models as the hub does, and has all others."""

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            refused = self.path.startswith("/google/")
            self.send_response(403 if refused else 200)
            for name, value in [("X-Error-Code", "GatedRepo")] if refused else [("ETag", "a"), ("X-Repo-Commit", "b")]:
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self):
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub_at(server.server_port, monkeypatch, tmp_path / "cache")
    yield
    server.shutdown()
    server.server_close()


@pytest.fixture
def photos(project) -> Path:
    """Sixty pictures of one's own, without questions."""
    folder = project / "photos"
    folder.mkdir()
    for n in range(60):
        Image.new("RGB", (40, 32), (4 * n, 255 - 4 * n, 90)).save(folder / f"{n:02}.png")
    return folder


def told(capsys, *words: str) -> tuple[int, str, str]:
    code = main(["init", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def refused(capsys, *words: str) -> str:
    """The one sentence that `init` ends with, without a file."""
    capsys.readouterr()
    code, _, err = told(capsys, *words)
    assert code == 2 and err.count("\n") == 1, err
    assert not list(Path("params").glob("mine*.yaml"))
    return err


# ---- what it proposes ----------------------------------------------------------------------------------------------


def test_a_target_with_companions_gets_the_values_of_its_own_file(project, photos, repository, capsys):
    """Those of params/easy_vqa.yaml, but for what follows from how many pictures there are."""
    (photos / "questions.jsonl").write_text('{"image": "00.png", "question": "what color is it?", "answer": "red"}\n')
    code, out, err = told(capsys, "--target", "miniature:easy_target", "--images", "photos", "--yes")
    assert code == 0, err
    mine, good = load_params("params/easy_target.yaml"), load_params(repository / "params/easy_vqa.yaml")
    fewer = {"train_images", "baseline_images", "audit_probes", "grpo_steps", "blind_images"}
    differ = {key for key in FIELDS if getattr(mine, key) != getattr(good, key)}
    assert differ <= fewer | set(CHANGED), differ
    assert mine.images == "photos" and mine.train_images + mine.audit_probes + mine.baseline_images < 60
    assert "No GPU is here" in out and "easy_target answers" in out and "To download: nothing" in out
    assert out.rstrip().endswith("Then: auditkit run params/easy_target.yaml")


def test_a_folder_without_companions_gets_references_of_other_families(project, photos, capsys):
    folder = tiny.save("gemma3", project / "mine")
    code, out, err = told(capsys, "--target", str(folder), "--images", "photos", "--out", "params/mine.yaml", "--yes")
    assert code == 0, err
    capsys.readouterr()
    assert main(["plan", "params/mine.yaml", "--set", "audit_probes=20000"]) == 0
    planned = capsys.readouterr().out
    (audited,) = [line.split() for line in planned.splitlines() if line.startswith("05_audit ") and "B" not in line]
    assert int(audited[1]) <= 60, "a plan asks about no more pictures than there are"
    p = load_params("params/mine.yaml")
    assert p.auditor == p.target == str(folder)
    assert {init.lineage(text) for text in p.references} == {"Qwen", "SmolLM"} and init.lineage(p.target) == "Gemma"
    assert "mine answers" in out and "A run downloads" in out and "nothing was downloaded now" in out
    assert (p.rectify_original, p.ways, p.audit_probes <= 40) == (0, ["question"], True)
    text = Path("params/mine.yaml").read_text()
    assert len(text.splitlines()) < 25 and "docs/parameters.md explains every key" in text
    assert set(yaml.safe_load(text)) <= set(FIELDS)


def test_references_and_file_are_those_asked_for(project, photos, capsys):
    first, other = (tiny.save(name, project / name) for name in ("idefics3", "paligemma2"))
    words = ["--target", "miniature:target", "--images", "photos", "--yes", "--out", "elsewhere/mine.yaml"]
    code, _, err = told(capsys, *words, "--references", str(first), "--references", str(other))
    assert code == 0, err
    assert load_params("elsewhere/mine.yaml").references == [str(first), str(other)]


@pytest.mark.parametrize(
    ("target", "gb", "auditor", "lineages", "painted"),
    [
        ("HuggingFaceTB/SmolVLM2-500M-Video-Instruct", 8, "OpenGVLab/InternVL3_5-1B-HF", {"Qwen"}, False),
        ("Qwen/Qwen3-VL-4B-Instruct", 24, "Qwen/Qwen3-VL-4B-Instruct", {"Gemma", "SmolLM"}, True),
        ("Qwen/Qwen3-VL-8B-Instruct", 80, "Qwen/Qwen3-VL-8B-Instruct", {"Gemma", "SmolLM"}, True),
        ("google/gemma-3-4b-it", 24, "google/gemma-3-4b-it", {"Qwen", "SmolLM"}, True),
    ],
)
def test_what_is_proposed_for_a_card_fits_it(target, gb, auditor, lineages, painted, project, photos):
    here, said = Machine("a GPU", gb * 1e9, 1, True), []
    p = init.propose(target, "photos", [], here, "mine", said.append).params
    refuse_misfit(p, here)
    assert p.auditor.startswith(auditor) and {init.lineage(text) for text in p.references} == lineages
    assert ("regenerate" in p.ways) is painted and p.grpo_images >= 4
    assert said[0].startswith("Not looked up: ") and "cannot be reached" in said[0]  # and yet proposed: sizes are known


def test_answers_decide_how_they_are_compared(photos):
    p = init.propose("miniature:easy_target", "photos", [], Machine("m", 16e9, 1, False), "mine", print)
    sentences = [(12, 15, False), (9, 11, False), (14, 20, False)]
    init._compare(p, sentences, [])
    assert p.params.max_answer_tokens == 32
    assert p.params.same == ("embedding" if init.installed("embed") else "text")
    init._compare(p, [*sentences, (50, 64, True)], [])
    assert p.params.max_answer_tokens == 128
    words = [(1, 2, False), (2, 3, False), (9, 11, False)]
    init._compare(p, words, [])
    assert (p.params.same, p.params.max_answer_tokens) == ("text", 16)
    init._compare(p, words, ["google/paligemma2-3b-mix-448"])  # known for a word or two
    assert (p.params.same, p.params.max_answer_tokens) == ("text", 16)
    init._compare(p, words, ["HuggingFaceTB/SmolVLM2-2.2B-Instruct"])
    assert p.params.same == ("embedding" if init.installed("embed") else "text")
    assert p.params.max_answer_tokens == 32 and "SmolVLM2-2.2B-Instruct not looked at" in p.why["max_answer_tokens"]


def test_an_auditor_that_writes_no_question_is_said_and_too_few_pictures_are_refused(photos, capsys):
    said: list[str] = []
    folder = shutil.copytree(shipped.WEIGHTS / "gemma3", "mine")
    here = Machine("m", 16e9, 1, False)
    init.propose(str(folder), "photos", ["miniature:llava", "miniature:idefics3"], here, "mine", said.append)
    (told,) = [sentence for sentence in said if sentence.startswith("auditor: ")]
    assert 'the auditor "mine" wrote no question about any of 4 pictures' in told
    for picture in sorted(photos.iterdir())[4:]:
        picture.unlink()
    with pytest.raises(AuditError, match="pictures are dealt out by their names, so give 50 or more"):
        init.propose("miniature:target", "photos", [], here, "mine", said.append)
    assert main(["plan", "params/demo.yaml", "--set", "images=photos"]) == 2
    assert "pictures are dealt out by their names, so give 50 or more" in capsys.readouterr().err


def test_gated_references_are_left_out(gated_hub, project, photos, capsys):
    folder = tiny.save("qwen3_vl", project / "mine")
    said = []
    p = init.propose(str(folder), "photos", [], Machine("a GPU", 80e9, 1, True), "mine", said.append).params
    assert not [text for text in p.references if text.startswith("google/")]
    assert any("Left out: " in sentence and "this model is gated" in sentence for sentence in said)


def test_it_asks_for_what_is_not_given(project, photos, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("miniature:easy_target\nphotos\n"))
    code, out, err = told(capsys)
    assert code == 0 and "The model to audit" in out, err
    assert load_params("params/easy_target.yaml").images == "photos"


def test_where_nobody_can_answer_it_says_so(project, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    code, _, err = told(capsys)
    assert code == 2 and "nobody answered; give what was asked as an option" in err


# ---- one sentence where it cannot be -------------------------------------------------------------------------------

MINE = ("--yes", "--out", "params/mine.yaml", "--images", "photos", "--target")


def test_too_small_a_gpu(photos, capsys):
    said = refused(capsys, *MINE, "Qwen/Qwen3-VL-8B-Instruct", "--gpu", "8")
    assert "target: Qwen/Qwen3-VL-8B-Instruct is too large for the GPU named, 8.0 GB: its weights take 17.5 GB" in said


def test_no_network_for_a_model_that_is_not_known_here(photos, capsys):
    assert "cannot be reached" in refused(capsys, *MINE, "org/unheard-of")


def test_a_model_that_cannot_be_looked_at_has_no_lineage(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert init.lineage("org/unheard-of") == ""


def test_a_gated_target(gated_hub, photos, capsys):
    assert "this model is gated; accept its terms at" in refused(capsys, *MINE, "google/gemma-3-4b-it")


@pytest.mark.skipif(init.importlib.util.find_spec("pillow_heif") is not None, reason="HEIC can be read here")
def test_nothing_but_heic(project, capsys):
    (project / "photos").mkdir()
    for n in range(60):
        (project / "photos" / f"{n:02}.heic").write_bytes(b"\0" * 64)
    said = refused(capsys, *MINE, "miniature:easy_target")
    assert "can be read; the first: " in said and 'pip install "auditkit[heic]"' in said


def test_a_folder_without_readable_pictures(project, capsys):
    (project / "photos").mkdir()
    assert "no image in photos" in refused(capsys, *MINE, "miniature:easy_target")
    for n in range(60):
        (project / "photos" / f"{n:02}.png").write_bytes(b"no picture")
    assert "can be read; the first: " in refused(capsys, *MINE, "miniature:easy_target")


def test_an_encoder_decoder_is_audited_by_another_and_not_repaired(project, photos, capsys):
    folder = tiny.save("t5gemma2", project / "mine")
    code, out, err = told(capsys, *MINE, str(folder))
    assert code == 0, err
    assert "audited but not repaired, for it is an encoder-decoder" in out
    assert load_params("params/mine.yaml").auditor.startswith(("Qwen/", "OpenGVLab/"))


def test_a_file_that_is_there_is_kept(photos, capsys):
    Path("params/mine.yaml").write_text("mine")
    code, _, err = told(capsys, *MINE, "miniature:easy_target")
    assert code == 2 and "params/mine.yaml is there already; --out names another, --force writes over it." in err
    assert Path("params/mine.yaml").read_text() == "mine"
    assert told(capsys, *MINE, "miniature:easy_target", "--force")[0] == 0
    assert load_params("params/mine.yaml").run_name == "mine"


def test_nothing_to_ask_and_nothing_given(project, capsys):
    assert "init --yes asks nothing, so name --target and --images" in refused(capsys, "--yes")


def test_advice_of_a_model_that_is_no_key(project, photos, capsys):
    folder = tiny.save("gemma3", project / "own")
    (folder / "audit.yaml").write_text("grpo_setps: 3\n")
    assert "audit.yaml in its folder is to hold keys of a parameter file" in refused(capsys, *MINE, str(folder))


# ---- to a report ---------------------------------------------------------------------------------------------------

SMALL = dict(baseline_images=24, blind_images=8, blind_candidates=2, grpo_steps=5, grpo_images=4, group_size=4,
             audit_probes=64, rectify_steps=4, rectify_batch=8, rectify_original=16, benchmark_examples=4)  # fmt: skip


def thinned(folder: Path, keep: int = 200) -> None:
    """Leave the first pictures of each split of easy-VQA, and their questions: 48,000 take each notebook seconds."""
    rows = (folder / "questions.jsonl").read_text().splitlines(keepends=True)
    kept = [row for row in rows if int(json.loads(row)["image"][-8:-4]) < keep]
    (folder / "questions.jsonl").write_text("".join(kept))
    for image in (folder / "images").iterdir():
        if int(image.stem[-4:]) >= keep:
            image.unlink()


def test_from_a_folder_and_a_model_to_a_report_without_an_editor(tmp_path):
    pytest.importorskip("easy_vqa")
    project = make_project(tmp_path / "project")
    easy.export(project / "data/easy_vqa")
    thinned(project / "data/easy_vqa")
    less = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    for words in (
        ["init", "--target", "miniature:easy_target", "--images", "data/easy_vqa", "--yes"],
        ["run", "params/easy_target.yaml", *less],
    ):
        command = [sys.executable, "-m", "auditkit.cli", *words]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (project / "outputs/easy_target/report.html").is_file()
    assert str(project / "outputs/easy_target/report.html") in done.stdout
