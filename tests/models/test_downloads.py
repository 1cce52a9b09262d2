"""Models that cannot be had: what is wrong is said in one sentence, in seconds, and nothing of theirs is run."""

import json
import shutil
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from auditkit.counterfactual.make import load_pipeline
from auditkit.errors import AuditError
from auditkit.miniature import shipped
from auditkit.models.base import answer_questions
from auditkit.models.load import load_model

needs_weights = pytest.mark.skipif(
    not (shipped.WEIGHTS / "target").is_dir(), reason="the miniature models are not built yet"
)


@pytest.fixture
def copy(tmp_path):
    """A folder of one's own with the target in it, free to be damaged."""
    return shutil.copytree(shipped.WEIGHTS / "target", tmp_path / "mine")


def refused(spec, *words, load=load_model):
    with pytest.raises(AuditError) as error:
        load(spec)
    assert all(word in str(error.value) for word in (str(spec), *words)), str(error.value)
    assert "\n" not in str(error.value)


@needs_weights
def test_a_tokenizer_that_its_library_cannot_read_is_refused(copy):
    """tokenizers raises a bare Exception for it."""
    file = copy / "tokenizer.json"
    file.write_text(file.read_text().replace('"lstrip"', '"single_word"', 1))
    refused(copy, "duplicate field `single_word`", "its tokenizer and preprocessor_config.json belong")


HUB = {  # what the hub answers about a model: its status and its header X-Error-Code
    "gated/model": (403, "GatedRepo"),
    "gated/unknown-user": (401, "GatedRepo"),
    "nobody/model": (401, "RepoNotFound"),
    "org/old": (404, "RevisionNotFound"),
    "org/gguf": (404, "EntryNotFound"),
    "org/ill": (503, None),
}


def hub_at(port: int, monkeypatch, cache) -> None:
    """What HF_ENDPOINT and HF_HUB_CACHE do, which are read when the library is imported."""
    address = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """A hub at a port where nothing listens, and an empty cache."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        hub_at(free.getsockname()[1], monkeypatch, tmp_path)


@pytest.fixture
def hub_server(monkeypatch, tmp_path):
    """A server on loopback that refuses as the hub does; the list of what it was asked."""
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            status, code = HUB["/".join(self.path.split("/")[1:3])]
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub_at(server.server_port, monkeypatch, tmp_path)
    yield asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("gated/model", ["is gated", "accept its terms at http", "/gated/model", "hf auth login"]),
        ("gated/unknown-user", ["is gated"]),
        ("nobody/model", ["no public model of this name", "hf auth login"]),
        ("org/old?revision=v9", ["no revision v9"]),
        ("org/gguf", ["no config.json"]),
        ("org/ill", ["cannot be reached", "503"]),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_sentence_and_asked_once(hub_server, spec, words):
    began = time.monotonic()
    refused(spec, *words)
    assert time.monotonic() - began < 5 and sum(path.endswith("config.json") for path in hub_server) == 1


@pytest.mark.parametrize(
    ("spec", "words"), [("gated/model?steps=4", ["is gated"]), ("org/gguf", ["no model_index.json", "of diffusers"])]
)
def test_a_pipeline_is_asked_for_by_the_file_that_pipelines_have(hub_server, spec, words):
    refused(spec, *words, load=load_pipeline)
    assert sum(path.endswith("model_index.json") for path in hub_server) == 1


def test_without_a_network_a_hub_id_and_a_mistyped_folder_are_refused_in_seconds(no_network, monkeypatch):
    began = time.monotonic()
    refused("google/gemma-3-4b-it", "no such folder", "cannot be reached")
    refused("my_models/taget", "no such folder", "cannot be reached")
    refused("black-forest-labs/FLUX.1-dev?steps=4", "no such folder", "cannot be reached", load=load_pipeline)
    assert time.monotonic() - began < 5
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("google/gemma-3-4b-it", "HF_HUB_OFFLINE is set")


@needs_weights
def test_what_the_cache_holds_is_loaded_without_a_network(no_network, tmp_path):
    commit, held = "0" * 40, tmp_path / "models--org--mine"
    shutil.copytree(shipped.WEIGHTS / "target", held / "snapshots" / commit)
    (held / "refs").mkdir()
    (held / "refs" / "main").write_text(commit)
    began = time.monotonic()
    model = load_model("org/mine")
    assert model.name == "mine" and time.monotonic() - began < 10


@needs_weights
def test_a_model_with_code_of_its_own_is_refused_until_asked_for(copy, tmp_path):
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "own.Own", "AutoModelForImageTextToText": "own.Model"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "own.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w').write('it ran')\nclass Own: pass\n")
    refused(copy, "code of its own", f"{copy}?trust_remote_code=yes")
    assert not (tmp_path / "run").exists()


@needs_weights
def test_a_kind_of_model_that_transformers_does_not_know_is_refused(copy):
    config = json.loads((copy / "config.json").read_text()) | {"model_type": "of_tomorrow"}
    (copy / "config.json").write_text(json.dumps(config))
    refused(copy, "does not know this kind of model")


@needs_weights
def test_a_chat_template_that_takes_no_images_or_fails_is_refused(copy):
    (copy / "chat_template.jinja").write_text("{{ raise_exception('no images, please') }}")
    refused(copy, "its chat template does not take one question on one image", "no images, please")


@needs_weights
def test_code_of_its_own_is_run_when_asked_for_by_name(copy, tmp_path, monkeypatch, capsys):
    from PIL import Image
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "own.Own", "AutoModelForImageTextToText": "own.Model"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "own.py").write_text(
        "from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration\n"
        "class Own(PaliGemmaConfig):\n    model_type = 'mine'\n"
        "class Model(PaliGemmaForConditionalGeneration):\n    config_class = Own\n"
    )
    mine = load_model(f"{copy}?trust_remote_code=yes")
    load_model(f"{copy}?trust_remote_code=yes")
    said = capsys.readouterr().out
    assert said.count("trust_remote_code") == 1, "once, in full"
    assert "run on this machine" in said and "delete your files" in said and "keys in your environment" in said
    assert type(mine.model).__name__ == "Model" and mine.name == "mine"
    red = [Image.new("RGB", (64, 64), (200, 30, 30))]
    assert answer_questions(mine, red, ["is there a cat?"]) == answer_questions(
        load_model("miniature:target"), red, ["is there a cat?"]
    )
