"""A model behind a server says what it says here, and whatever else a server says ends in one sentence.

Two servers on loopback: `transformers serve` with a miniature model, and one that answers as a test tells it to.
"""

import contextlib
import http.server
import importlib.util
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from scoring import score

from auditkit import specs
from auditkit.audit.loop import run_audit
from auditkit.consensus.same import Same
from auditkit.data.load import load_images
from auditkit.data.source import Picture
from auditkit.errors import AuditError, Unfinished
from auditkit.findings.recheck import passes_gate, recheck_findings
from auditkit.models import downloads, openai
from auditkit.models.answers import AnswerBook
from auditkit.models.base import WrittenText, answer_questions, generate_texts
from auditkit.models.load import load_model
from auditkit.models.openai import Endpoint
from auditkit.params import load_params
from auditkit.report.summary import write_report
from auditkit.runs import costs, jsonl
from auditkit.runs.folder import open_stage, run_folder, why_not_resume
from auditkit.runs.probe import parse_question

pytest.importorskip("openai", reason="openai is not installed: pip install auditkit[endpoint]")
KEY = "sk-0123456789abcdef"
P = SimpleNamespace(
    search="once",
    audit_probes=24, seed=3, temperature=1.0, min_token_probability=1e-3, max_question_tokens=48, max_answer_tokens=8,
    quorum=0.6, same="text", batch_size=24, engine="local", ways=["question"],
)  # fmt: skip


def free_port() -> int:
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """The address of `transformers serve` with the miniature gemma3."""
    if missing := [name for name in ("fastapi", "uvicorn") if not importlib.util.find_spec(name)]:
        pytest.skip(f"transformers serve needs {', '.join(missing)}: pip install transformers[serving]")
    program, port, cache = Path(sys.executable).with_name("transformers"), free_port(), tmp_path_factory.mktemp("hub")
    log = cache / "server.log"
    model, how = (
        Path(downloads.resolve("miniature:gemma3")),
        ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
    )
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    with log.open("w") as out:
        server = subprocess.Popen(  # in the folder beside it, so that the model goes by its name alone
            [program, "serve", model.name, *how, "--dtype", "float32"],
            cwd=model.parent, env=os.environ | quiet, stdout=out, stderr=out,
        )  # fmt: skip
    try:
        for _ in range(240):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            assert server.poll() is None, log.read_text()
            time.sleep(0.5)
        else:
            raise AssertionError(log.read_text())
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def server():
    """A server that answers with `server.reply(request)`, (status, headers, text), and notes what it was sent."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.answer(
                {
                    "path": self.path,
                    "headers": {k.lower(): v for k, v in self.headers.items()},
                    **json.loads(body or "{}"),
                }
            )

        def do_GET(self):
            self.answer({"path": self.path, "headers": {k.lower(): v for k, v in self.headers.items()}})

        def answer(self, request):
            there.requests.append(request)
            status, headers, text = there.reply(request)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.send_response(status)
                for name, value in {
                    "Content-Type": "application/json",
                    "Content-Length": len(text),
                }.items() | headers.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(text.encode())
                there.drip(self.wfile)

        def log_message(self, *_):
            pass

    there = SimpleNamespace(requests=[], drip=lambda file: None, reply=lambda request: completion(prompt_of(request)))
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True).start()
    there.place = f"http://127.0.0.1:{listening.server_port}/v1"
    yield there
    listening.shutdown()
    listening.server_close()


def completion(content, usage=(30, 2), finish="stop", **message):
    counted = {"usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}} if usage else {}
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}
    return 200, {}, json.dumps({"id": "1", "object": "chat.completion", "model": "m", "choices": [choice], **counted})


def failure(status, message="no", headers=None, **more):
    return status, {"retry-after-ms": "1", **(headers or {})}, json.dumps({"error": {"message": message, **more}})


def prompt_of(request) -> str:
    content = request["messages"][0]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def load(server, query="", model="m") -> Endpoint:
    return load_model(f"{server.place}{query}#{model}")


def pictures(n: int) -> list[Picture]:
    return load_images("miniature").pictures("audit", n, seed=3)


# ---- the same answers ------------------------------------------------------------------------------------------------


def test_greedy_answers_on_24_pictures_are_those_of_the_same_model_here(served):
    held_out = load_images("miniature").benchmarks(2)
    examples = [example for some in held_out.values() for example in some][:24]
    boards, questions = [example.image for example in examples], [example.question for example in examples]
    here = load_model("miniature:gemma3", device="cpu")
    there = load_model(f"{served}#gemma3")
    said = here.write(boards, questions, 8)
    assert len(set(said)) >= 8
    assert there.name == here.name and there.write(boards, questions, 8) == said
    assert answer_questions(there, boards, questions) == said  # through the batches, which come longest first
    assert there.write([None], ["is there a red square ?"], 8) == here.write([None], ["is there a red square ?"], 8)


def test_an_audit_with_one_reference_behind_a_server_ends_in_the_records_of_the_local_one(served, tmp_path):
    auditors = {"untrained": partial(load_model, "miniature:auditor", device="cpu", batch_size=24)}
    target, gemma3, llava = (
        partial(load_model, f"miniature:{name}", device="cpu") for name in ("target", "gemma3", "llava")
    )
    spec = f"{served}?price_in=2&price_out=10#gemma3"
    local = run_audit(auditors, target, [gemma3, llava], pictures(24), P, tmp_path / "local")
    remote = run_audit(auditors, target, [partial(load_model, spec), llava], pictures(24), P, tmp_path / "remote")
    assert remote == local and sum(record["question"] is not None for record in local) > 12
    assert score(remote, P) == score(local, P)
    assert costs.spent(tmp_path / "local" / "answers.jsonl", ["miniature:gemma3"]) == {}
    (spent,) = costs.spent(tmp_path / "remote" / "answers.jsonl", [spec, "miniature:target"]).values()
    rows = [row for row in jsonl.read(tmp_path / "remote" / "answers.jsonl") if row["model"] == "gemma3"]
    assert spent["calls"] == len(rows) and spent["tokens_read"] > 30 * len(rows)
    assert spent["dollars"] == pytest.approx((2 * spent["tokens_read"] + 10 * spent["tokens_written"]) / 1e6, abs=1e-6)


def test_a_model_that_the_server_does_not_have_is_named(served):
    with pytest.raises(AuditError, match="refuses the request .400: Server is pinned to 'gemma3'; requested 'gemma4'"):
        load_model(f"{served}#gemma4").write([None], ["is it?"], 8)


# ---- what is sent, and in which order it comes back ------------------------------------------------------------------


def test_answers_come_in_the_order_of_the_questions_however_late_each_is(server):
    def slower_first(request):
        time.sleep(0.05 * (4 - int(prompt_of(request))))
        return completion(f" answer {prompt_of(request)}\n")

    server.reply = slower_first
    model = load(server, "?batch_size=3")
    assert model.batch_size == 3
    assert model.write([None] * 5, list("01234"), 8) == [f"answer {n}" for n in range(5)]
    assert {request["temperature"] for request in server.requests} == {0.0}
    assert {request["max_tokens"] for request in server.requests} == {8}


def test_what_the_limit_ended_is_marked(server, tmp_path):
    server.reply = lambda request: completion("a dog is", finish="length" if prompt_of(request) == "long" else "stop")
    book = AnswerBook(tmp_path / "answers.jsonl")
    book.ask(load(server), pictures(2), ["long", "short"], 3)
    cut = {row["question"]: row.get("cut") for row in jsonl.read(tmp_path / "answers.jsonl")}
    assert cut == {"long": True, "short": None}


def test_a_picture_goes_as_it_is_or_shrunk_where_asked(server):
    import base64
    import io

    from PIL import Image, ImageChops

    board = pictures(1)[0].image
    load(server).write([board], ["is it?"], 8)
    load(server, "?max_pixels=1024").write([board], ["is it?"], 8)
    sent = []
    for request in server.requests:
        part = request["messages"][0]["content"][0]
        assert part["type"] == "image_url" and part["image_url"]["url"].startswith("data:image/png;base64,")
        sent.append(Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2]))))
    assert ImageChops.difference(sent[0].convert("RGB"), board.convert("RGB")).getbbox() is None
    assert sent[1].size == (32, 32)


def test_a_model_that_wants_another_word_for_the_limit_or_no_temperature_gets_that(server, capsys):
    def picky(request):
        if "max_tokens" in request:
            return failure(400, "Unsupported parameter: use 'max_completion_tokens' instead.", param="max_tokens")
        if "temperature" in request:
            return failure(400, "Unsupported value: 0 is not supported.", param="temperature")
        return completion("yes")

    server.reply = picky
    model = load(server)
    assert model.write([None] * 3, ["is it?"] * 3, 8) == ["yes"] * 3
    asked = len(server.requests)
    assert model.write([None], ["is it?"], 8) == ["yes"] and len(server.requests) == asked + 1
    assert server.requests[-1]["max_completion_tokens"] == 8
    assert capsys.readouterr().out.count("takes no temperature") == 1


# ---- keys ------------------------------------------------------------------------------------------------------------


def test_a_key_goes_where_its_owner_said_and_nowhere_else(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai-only")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-openai-only")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Secret: openai-only")
    load(server).write([None], ["is it?"], 8)
    load(server, "?key=MY_KEY").write([None], ["is it?"], 8)
    assert [request["headers"]["authorization"] for request in server.requests] == ["Bearer -", f"Bearer {KEY}"]
    assert "openai-only" not in str(server.requests)
    assert os.environ["OPENAI_ORG_ID"] == "org-openai-only"
    assert load_model("https://api.openai.com/v1#gpt").client.api_key == "sk-openai-only"
    for elsewhere in ("http://api.openai.com/v1#gpt", "https://api.openai.com.example.org/v1#gpt"):
        assert load_model(elsewhere).client.api_key == "-"


def test_nothing_follows_to_another_server(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    seen = []

    class Other(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append(dict(self.headers))
            self.send_response(401)
            self.end_headers()

        def log_message(self, *_):
            pass

    other = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=other.serve_forever, args=(0.02,), daemon=True).start()
    server.reply = lambda request: (307, {"Location": f"http://127.0.0.1:{other.server_port}/v1/chat/completions"}, "")
    with pytest.raises(AuditError, match="sends on to another server, http://127.0.0.1 .307., which is not followed"):
        load(server, "?key=MY_KEY").write([None], ["is it?"], 8)
    other.shutdown()
    other.server_close()
    assert not seen, "neither key nor picture nor question goes to another server"


@pytest.mark.parametrize("value", [None, "", "two words", "schlüssel"])
def test_a_variable_without_a_key_is_named(server, monkeypatch, value):
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(AuditError, match="MY_KEY") as error:
        load(server, "?key=MY_KEY")
    assert not value or value not in str(error.value)


@pytest.mark.parametrize(
    "text", [f"https://host/v1?key={KEY}#m", f"https://host/v1?key={KEY}", "https://h/v1?key=hf_aB1#m"]
)
def test_a_key_in_a_parameter_file_is_refused_and_not_repeated(text):
    with pytest.raises(AuditError) as error:
        specs.parse(text)
    assert KEY not in str(error.value) and "hf_aB1" not in str(error.value)


# ---- what else a server may say --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply, words",
    [
        (failure(401, f"Incorrect API key provided: {KEY}."), "does not accept the key in MY_KEY (401)"),
        (failure(403, f"{KEY} may not"), "says that the key in MY_KEY has no right to m (403: (the key) may not)"),
        (failure(404, "The model does not exist"), "has no model m (404); it serves m2, other."),
        (failure(413), "finds the picture too large (413); make it smaller with ?max_pixels="),
        (failure(422, "bad"), "refuses the request (422: bad)"),
        (failure(400, "This model takes no images. " * 20), "refuses the request (400: This model takes no images."),
        (failure(429, "slow down"), "takes no more requests, after 3 attempts (429: slow down)"),
        (failure(500, "boom"), "fails after 3 attempts (500: boom)"),
        ((503, {"retry-after-ms": "1"}, "<html>busy</html>"), "fails after 3 attempts (503: <html>busy</html>)"),
        ((200, {"Content-Type": "text/html"}, "<html>Welcome</html>"), "no chat completion ('<html>Welcome</html>')"),
        ((200, {}, "{]"), "answers what is no chat completion"),
        ((200, {}, "[1, 2]"), "answers what is no chat completion"),
        ((200, {}, '{"choices": []}'), "answers what is no chat completion"),
        ((200, {}, '{"error": {"message": "overloaded"}}'), "overloaded"),
        (completion(None), "answers with no text but None"),
        (completion([{"type": "text", "text": "yes"}]), "answers with no text but [{"),
        (completion(None, finish="length", reasoning_content="hmm"), "thought for all of its 8 tokens"),
    ],
)  # fmt: skip
def test_one_sentence_says_what_went_wrong_and_what_to_do(server, monkeypatch, reply, words):
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setattr(openai, "RETRIES", 2)
    models = json.dumps(
        {"object": "list", "data": [{"id": "other", "object": "model"}, {"id": "m2", "object": "model"}]}
    )
    server.reply = lambda request: (200, {}, models) if request["path"].endswith("/models") else reply
    with pytest.raises(AuditError) as error:
        load(server, "?key=MY_KEY").write([pictures(1)[0].image], ["is it?"], 8)
    said = str(error.value)
    assert words in said and KEY not in said and said.startswith('"m"') and "\n" not in said and len(said) < 330
    assert error.value.__suppress_context__  # no traceback shows the server's own words


def test_a_key_that_is_wanted_but_not_named_is_asked_for(server):
    server.reply = lambda request: failure(401)
    with pytest.raises(AuditError, match=r"wants a key .401.; name the environment variable .* \?key=MY_KEY"):
        load(server).write([None], ["is it?"], 8)


def test_a_server_that_is_not_there_is_said_so(monkeypatch):
    monkeypatch.setattr(openai, "RETRIES", 1)
    with pytest.raises(AuditError, match="cannot be reached .*refused.* after 2 attempts; start the server"):
        load_model(f"http://127.0.0.1:{free_port()}/v1#m").write([None], ["is it?"], 8)
    monkeypatch.setattr(openai, "RETRIES", 0)
    with pytest.raises(AuditError, match="cannot be reached .* at the first attempt; start the server or correct"):
        load_model("http://no-such-host.invalid/v1#m").write([None], ["is it?"], 8)


def test_a_server_that_does_not_answer_in_time_is_given_up(server, monkeypatch):
    monkeypatch.setattr(openai, "SECONDS", 0.2)
    monkeypatch.setattr(openai, "RETRIES", 0)
    server.reply = lambda request: time.sleep(0.6) or completion("late")
    with pytest.raises(AuditError, match="did not answer within 0.2 s"):
        load(server).write([None], ["is it?"], 8)


def test_what_may_pass_is_tried_again_and_counted(server, tmp_path):
    answers = iter([failure(429), failure(500), completion("yes")])
    server.reply = lambda request: next(answers)
    book = AnswerBook(tmp_path / "answers.jsonl")
    assert book.ask(load(server), pictures(1), ["is it red?"]) == ["yes"]
    assert costs.spent(book.path, [f"{server.place}#m"]) == {
        "m": {"calls": 1, "tokens_read": 30, "tokens_written": 2, "retries": 2}
    }


# ---- nothing paid for is lost ----------------------------------------------------------------------------------------


def test_what_came_back_before_a_failure_is_kept_and_only_the_rest_is_asked_again(server, monkeypatch, tmp_path):
    monkeypatch.setattr(openai, "RETRIES", 0)
    questions = [f"is it {n}?" for n in range(8)]

    def breaks(request):
        if prompt_of(request) in questions[5:6]:
            time.sleep(0.3)  # so that the others are under way
            return failure(500)
        return completion(f"{prompt_of(request)} yes")

    server.reply = breaks
    path, boards = tmp_path / "answers.jsonl", pictures(8)
    with pytest.raises(Unfinished, match="500"):
        AnswerBook(path).ask(load(server), boards, questions)
    assert len(jsonl.read(path)) == 7
    server.reply, server.requests[:] = (lambda request: completion(f"{prompt_of(request)} yes")), []
    said = AnswerBook(path).ask(load(server), boards, questions)
    assert said == [f"{question} yes" for question in questions]
    assert [prompt_of(request) for request in server.requests] == ["is it 5?"]
    assert costs.spent(path, [])["m"]["calls"] == 8


def test_refusals_are_empty_answers_that_are_counted(server, tmp_path):
    replies = {
        "is it a?": completion(None, refusal="I will not."),
        "is it b?": completion("half", finish="content_filter"),
        "is it c?": failure(400, "filtered", code="content_filter"),
        "is it d?": completion("yes"),
    }
    server.reply = lambda request: replies[prompt_of(request)]
    book = AnswerBook(tmp_path / "answers.jsonl")
    assert book.ask(load(server), pictures(4), list(replies)) == ["", "", "", "yes"]
    spec = f"{server.place}?price_in=1&price_out=4#m"
    spent = {"calls": 4, "tokens_read": 90, "tokens_written": 6, "refused": 3, "dollars": 0.000114}
    assert costs.spent(book.path, [spec]) == {"m": spent}
    assert costs.in_words({"m": spent}) == [
        "m: 4 answers by its server, 90 tokens read, 6 written, 3 refused, $0.00011"
    ]


def test_a_key_in_an_answer_is_taken_out_and_half_characters_are_escapes_and_both_are_counted(
    server, monkeypatch, project
):
    monkeypatch.setenv("MY_KEY", KEY)
    said = {
        "is it a?": f"red {KEY}", "is it b?": "red \ud83d", "is it c?": "Authorization: Bearer abc.def0123456789", 
        "is it d?": "\x1b[31mred 👍",
    }  # fmt: skip
    server.reply = lambda request: completion(said[prompt_of(request)])
    spec = f"{server.place}?key=MY_KEY#m"
    run = open_stage(
        load_params("params/smoke.yaml", references=[spec, "miniature:llava", "miniature:gemma3"]), "01_models"
    )
    answers = AnswerBook(run.path("answers.jsonl")).ask(load_model(spec), pictures(4), list(said))
    assert answers == ["red (the key)", r"red \ud83d", "Authorization: Bearer (the key)", "\x1b[31mred 👍"]
    assert AnswerBook(run.path("answers.jsonl")).ask(load_model(spec), pictures(4), list(said)) == answers
    run.finish({"models": 4})
    counts = json.loads((run.folder / "manifest.json").read_text())["counts"]
    assert counts == {"answers_cut": 0, "answers_escaped": 1, "answers_redacted": 2}


# ---- how much, how long, from where ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [300, 100_000, 1_000_000])
def test_an_answer_longer_than_its_tokens_can_be_is_cut_and_counted(server, tmp_path, capsys, size):
    server.reply = lambda request: completion("r" * size)
    book = AnswerBook(tmp_path / "answers.jsonl")
    assert book.ask(load(server), pictures(2), ["is it?", "is it not?"], 8) == ["r" * 8 * openai.LETTERS] * 2
    assert costs.answers_cut(book.path) == {"m": (2, 2)}
    assert capsys.readouterr().out == (
        '"m" writes more than the 8 tokens it was asked for; answers are cut after 256 characters.\n'
    )


def test_no_more_of_a_body_is_read_than_its_answer_can_fill(server, tmp_path):
    import tracemalloc

    long, model = completion("red " * 5_000_000), load(server)
    server.reply = lambda request: long
    tracemalloc.start()
    assert len(model.write([None], ["is it?"], 8)[0]) <= 8 * openai.LETTERS
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 30_000_000, "the server's own copy is of 20 MB"
    server.reply = lambda request: (200, {}, " " * 3_000_000)
    with pytest.raises(AuditError, match=r"no chat completion in its first 67,584 bytes \(''\)"):
        model.write([None], ["is it?"], 8)


def drips(server, pause):
    """The next replies come a byte at a time."""
    whole = completion("red")[2].encode()

    class Slow(str):
        def encode(self):
            return b""

    def write(handler_file):
        for i in range(len(whole)):
            handler_file.write(whole[i : i + 1])
            handler_file.flush()
            time.sleep(pause)

    server.drip = write
    return Slow("x" * len(whole))


def test_an_answer_that_drips_takes_no_longer_than_one_that_never_comes(server, monkeypatch):
    monkeypatch.setattr(openai, "SECONDS", 0.5)
    body = drips(server, 0.1)
    server.reply = lambda request: (200, {}, body)
    began = time.monotonic()
    with pytest.raises(AuditError, match="did not answer within 0.5 s after 2 attempts"):
        load(server).write([None], ["is it?"], 8)
    assert 0.9 < time.monotonic() - began < 2.5, "two attempts, of RETRIES + 1 that would be made for other reasons"


def test_a_long_list_of_models_is_read_and_one_that_never_comes_is_not_waited_for(server, monkeypatch):
    about = "x" * 2000
    models = [{"id": f"model-{i}", "object": "model", "about": about} for i in range(300)]
    listed = json.dumps({"object": "list", "data": models})
    server.reply = lambda request: (200, {}, listed) if request["path"].endswith("/models") else failure(404)
    with pytest.raises(AuditError, match="it serves model-27, .* and 290 more"):
        load(server, model="model-27x").write([None], ["is it?"], 8)
    monkeypatch.setattr(openai, "LISTING", 0.3)
    server.reply = lambda request: (request["path"].endswith("/models") and time.sleep(1)) or failure(404)
    began = time.monotonic()
    with pytest.raises(AuditError, match="has no model m .404.; an address usually ends in /v1"):
        load(server).write([None], ["is it?"], 8)
    assert time.monotonic() - began < 0.9


def test_a_redirect_on_the_same_server_is_followed(server):
    server.reply = lambda request: (
        completion("red") if "there" in request["path"] else (307, {"Location": "/v1/there"}, "")
    )
    assert load(server).write([None], ["is it?"], 8) == ["red"]


@pytest.mark.parametrize(
    "usage", ['{"prompt_tokens": Infinity, "completion_tokens": 1}', '{"prompt_tokens": -5, "completion_tokens": 1}',
              '{"prompt_tokens": NaN, "completion_tokens": 1}', "[" * 20_000 + "]" * 20_000, "[1, 2]", '"many"', "null",
              '{"prompt_tokens": ' + "9" * 5000 + ', "completion_tokens": 1}', '{"prompt_tokens": "3"}'],
)  # fmt: skip
def test_a_count_that_is_none_is_unknown(server, tmp_path, usage):
    status, headers, text = completion("red")
    text = text.replace('{"prompt_tokens": 30, "completion_tokens": 2}', usage)
    assert usage in text
    server.reply = lambda request: (status, headers, text)
    book = AnswerBook(tmp_path / "answers.jsonl")
    assert book.ask(load(server), pictures(1), ["is it?"]) == ["red"]
    assert costs.spent(book.path, [f"{server.place}?price_in=1#m"]) == {"m": {"calls": 1}}


def test_a_server_that_does_not_count_tokens_has_no_price(server, tmp_path):
    server.reply = lambda request: completion("yes", usage=None)
    book = AnswerBook(tmp_path / "answers.jsonl")
    book.ask(load(server), pictures(1), ["is it?"])
    assert costs.spent(book.path, [f"{server.place}?price_in=1#m"]) == {"m": {"calls": 1}}


def test_an_answer_keeps_what_it_cost_on_its_way_from_another_process():
    answer = pickle.loads(pickle.dumps(WrittenText("yes", {"tokens": [3, 1]})))
    assert answer == "yes" and answer.beside == {"tokens": [3, 1]}


def test_a_stage_and_the_report_say_what_servers_were_asked(server, project, capsys):
    references = [f"{server.place}?price_in=1&price_out=1&batch_size=4#m", "miniature:llava", "miniature:gemma3"]
    p = load_params("params/smoke.yaml", references=references)
    run = open_stage(p, "01_models")
    book = AnswerBook(run.path("answers.jsonl"))
    book.ask(load_model(references[0]), pictures(2), ["is it?", "is it not?"])
    run.finish({"models": 4})
    hosted = {"m": {"calls": 2, "tokens_read": 60, "tokens_written": 4, "dollars": 0.000064}}
    assert json.loads((run.folder / "manifest.json").read_text())["hosted"] == hosted
    assert "m: 2 answers by its server, 60 tokens read" in capsys.readouterr().out
    page = write_report(run_folder(p)).read_text()
    assert "m: 2 answers by its server, 60 tokens read, 4 written, $6.4e-05." in page
    assert json.loads((run_folder(p) / "summary.json").read_text())["hosted"]["m"]["calls"] == 2
    cheaper = load_params("params/smoke.yaml", references=[references[0].replace("=4", "=1"), *references[1:]])
    assert not why_not_resume(cheaper, "01_models")
    other = load_params("params/smoke.yaml", references=[f"{server.place}#m2", *references[1:]])
    assert "other settings: references" in why_not_resume(other, "01_models")


def test_an_auditor_may_not_be_behind_a_server_but_what_it_asks_may_be_answered_there(server):
    probes = [parse_question("is there a red square?")]
    server.reply = lambda request: completion("no")
    assert generate_texts(load(server), [pictures(1)[0].image], probes, 8) == ["no"]
    with pytest.raises(AuditError, match="an adapter needs the model's weights here"):
        load_model(f"{server.place}#m", adapter="somewhere")


def test_a_model_that_paraphrases_is_asked_once_a_finding_and_its_words_are_put_to_all(server, tmp_path):
    """The wordings change what the models read, so here they go through them; what they mean is the paraphraser's."""
    rows = [
        {"key": f"a/{i}", "picture": picture.key, "base": None, "question": f"what colour is the object at {place}?",
         "target": "red", "consensus": "blue", "agreement": 1.0, "outcome": "finding"}
        for i, (picture, place) in enumerate(zip(pictures(3), ("a1", "b2", "c3"), strict=True))
    ]  # fmt: skip

    def reply(request):
        asked = prompt_of(request).strip().split("\n")[-1]
        said = asked.replace("what colour is", "what is the colour of")
        return completion(said if "c3" not in asked else "It is blue.")  # which is no question

    server.reply = reply
    p = SimpleNamespace(**vars(P) | {"gates": ["reproduces", "sound"], "repeats": 0, "device": "cpu",
                        "dtype": "float32", "memory": "together", "paraphraser": f"{server.place}#m"})  # fmt: skip
    models = [partial(load_model, f"miniature:{name}", device="cpu") for name in ("target", "gemma3")]
    boards = load_images("miniature")
    said = recheck_findings(rows, models[0], models[1:], p, boards.picture, tmp_path)
    assert [said[row["key"]]["paraphrase"] for row in rows] == [
        "what is the colour of the object at a1?", "what is the colour of the object at b2?", None,
    ]  # fmt: skip
    assert [len(said[row["key"]]["target"]) for row in rows] == [1, 1, 0] and len(server.requests) == 3
    assert [len(said[row["key"]]["references"]["gemma3"]) for row in rows] == [1, 1, 0]
    assert passes_gate("reproduces", rows[2], said["a/2"], Same(), p.quorum), (
        "nothing was put again, nothing contradicts"
    )
