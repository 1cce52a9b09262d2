"""Everything a server may do, done to the kit: a real server on loopback that quotes keys, floods, hangs and lies.

    python -m tests.campaigns.server_behaviours --n 60 --seed 0

Each behaviour meets `auditkit check`, a stage of a run whose reference it is, with the report, and a judge of
answers. What has to hold is asserted for each (`meet`): an answer or one sentence, never a traceback; the key in no
file and in nothing printed; no control character on the terminal; the time bounded; the records whole; and no other
server asked.
Beyond the list, `--n` adds completions with random bytes changed. SECONDS is a test's, 0.4 instead of 300: the bounds
are the same code.
"""

import argparse
import contextlib
import gzip
import http.server
import io
import json
import os
import random
import re
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

KEY = "sk-c4mpaign-0123456789abcdef"
HUB, TRACKER, PASSWORD = (
    "hf_campaignABCDEF0123456789",
    "w4ndb0123456789abcdef0123456789abcdef0123",
    "pass-w0rd-of-the-proxy",
)
SECRETS = (KEY, HUB, TRACKER, PASSWORD)
LIMIT, SECONDS = 8, 0.4
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
LONGEST = 12.0  # seconds for all that one behaviour meets


# ---- what it sends --------------------------------------------------------------------------------------------------


def http_reply(body: bytes | str = b"", status: str = "200 OK", length: int | None = None, **headers: str) -> bytes:
    body = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
    lines = {"Content-Type": "application/json", "Content-Length": str(len(body) if length is None else length)}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


def completion(content, usage='{"prompt_tokens": 3, "completion_tokens": 2}', finish="stop", **message) -> str:
    message = {"role": "assistant", "content": content, **message}
    choice = json.dumps({"index": 0, "finish_reason": finish, "message": message})
    return f'{{"id": "1", "object": "chat.completion", "model": "m", "choices": [{choice}], "usage": {usage}}}'


def says(content, **how) -> Callable:
    return lambda asked: [http_reply(completion(content, **how))]


def sends(body, status: str = "200 OK", **headers) -> Callable:
    return lambda asked: [http_reply(body, status, **headers)]


def fails(status: str, message, **more) -> Callable:
    return sends(json.dumps({"error": {"message": message, **more}}), status, retry_after_ms="1")


def quotes(write: Callable[[dict], bytes]) -> Callable:
    """A reply made of the request's own headers."""
    return lambda asked: [write(asked["headers"])]


def forever(first: bytes, again: bytes, pause: float = 0.0) -> Callable:
    def flood(asked) -> Iterator[bytes]:
        yield first
        while True:
            yield again
            time.sleep(pause)

    return flood


def slowly(whole: bytes, pause: float = 0.1) -> Callable:
    def drip(asked) -> Iterator[bytes]:
        for i in range(len(whole)):
            yield whole[i : i + 1]
            time.sleep(pause)

    return drip


def hangs(first: bytes = b"") -> Callable:
    def hang(asked) -> Iterator[bytes]:
        yield first
        time.sleep(30)

    return hang


OPEN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
BEGUN = OPEN + b'{"choices": [{"message": {"role": "assistant", "content": "red'
TITLE, CLIPBOARD, COLOUR = "\x1b]0;owned\x07", "\x1b]52;c;cm0gLXJmIH4=\x07", "\x1b[31;5mred\x1b[0m"

BEHAVIOURS: dict[str, Callable] = {
    # keys
    "a 200 that quotes the request's headers": quotes(lambda h: http_reply(json.dumps({"you sent": h}))),
    "a page that quotes the request's headers": quotes(lambda h: http_reply(f"<html>{h}", Content_Type="text/html")),
    "an answer that quotes them": quotes(lambda h: http_reply(completion(json.dumps(h)))),
    "an answer with the key": says(f"red {KEY}"),
    "an answer with the key across its cut": says("r" * (32 * LIMIT - 10) + KEY),
    "an answer with the hub's token and a tracker's key": says(f"{HUB} {TRACKER}"),
    "an answer with the proxy's password": says(f"http://me:{PASSWORD}@proxy.example:80"),
    "an answer with the key in escapes": lambda asked: [
        http_reply(completion("@").replace("@", "".join(f"\\u{ord(c):04x}" for c in KEY)))
    ],
    "an answer list with the key": says([{"type": "text", "text": KEY}]),
    "a refusal with the key": says(None, refusal=f"{KEY} may not"),
    "401 with the key": fails("401 no", f"Incorrect API key provided: {KEY}"),
    "403 with the key": fails("403 no", f"{KEY} may not"),
    "400 with the headers": quotes(lambda h: http_reply(json.dumps({"error": {"message": str(h)}}), "400 no")),
    "422 with the key in a list": fails("422 no", [{"input": KEY}]),
    "500 with the key": fails("500 no", f"at {KEY}"),
    "500 with an Authorization header of another": fails("500 no", "Authorization: Bearer eyJhbGciOi.JIUzI1NiJ9.x0123"),
    "the key in the reason phrase": sends("", f"500 {KEY}", retry_after_ms="1"),
    "the key in a header": sends(completion("red"), X_Echo=KEY),
    "the key in usage": says("red", usage=json.dumps({"prompt_tokens": KEY, "completion_tokens": KEY})),
    "a list of models with the key": lambda asked: [
        http_reply(json.dumps({"object": "list", "data": [{"id": KEY, "object": "model"}]}))
        if asked["path"].endswith("/models")
        else http_reply(json.dumps({"error": {"message": "no such model"}}), "404 no")
    ],
    # control characters
    "an answer that sets the title": says(f"{TITLE}red"),
    "an answer that fills the clipboard": says(f"{CLIPBOARD}red"),
    "an answer in colour": says(COLOUR),
    "an answer with C1 controls": says("\x9b31mred\x9d0;owned\x9c"),
    "an answer written backwards": says("\u202edeR\u202c \u2066x\u2069"),
    "an answer with NUL and DEL": says("r\x00e\x7fd\r\nblue"),
    "an error that sets the title": fails("400 no", f"{TITLE}{CLIPBOARD}no"),
    "an error in colour, again and again": fails("503 no", COLOUR),
    "models in colour": lambda asked: [
        http_reply(json.dumps({"object": "list", "data": [{"id": COLOUR * 100, "object": "model"}] * 50}))
        if asked["path"].endswith("/models")
        else http_reply(json.dumps({"error": {"message": COLOUR}}), "404 no")
    ],
    "a page in colour": sends(f"<html>{COLOUR}{TITLE}", Content_Type="text/html"),
    "raw escapes in JSON": lambda asked: [http_reply(completion("@").replace("@", COLOUR))],
    "a redirect in colour": sends("", "307 Go", Location=f"http://example.invalid/{COLOUR}"),
    # characters that no file takes, and other encodings
    "half a pair": lambda asked: [http_reply(completion("@").replace("@", "red \\ud83d"))],
    "the other half": lambda asked: [http_reply(completion("@").replace("@", "\\ude00 red"))],
    "a pair the wrong way round": lambda asked: [http_reply(completion("@").replace("@", "\\ude00\\ud83d"))],
    "half a pair in an error": lambda asked: [http_reply('{"error": {"message": "\\ud83d"}}', "400 no")],
    "bytes that are no UTF-8": lambda asked: [http_reply(completion("@").encode().replace(b"@", b"ro\xfbge \xff"))],
    "UTF-16": lambda asked: [http_reply(completion("red").encode("utf-16"))],
    "a byte order mark": lambda asked: [http_reply(b"\xef\xbb\xbf" + completion("red").encode())],
    "an encoding of no text": sends(completion("red"), Content_Type="application/json; charset=rot13"),
    "headers in no encoding": lambda asked: [
        b"HTTP/1.1 200 OK\r\nContent-Type: \x8b\xf0json\r\nRetry-After: \xcf\x8b\r\n\r\n" + completion("red").encode()
    ],
    "an error in an encoding of no text": sends("no", "400 no", Content_Type="text/plain; charset=hex"),
    # size
    "100,000 characters": says("r" * 100_000),
    "a million characters": says("red " * 250_000),
    "50,000 characters without a break": says("r" * 50_000, usage="null"),
    "an endless answer": forever(BEGUN, b"red " * 4096),
    "an endless body of blanks": forever(OPEN, b" " * 65_536),
    "an endless error": forever(b"HTTP/1.1 400 no\r\n\r\n", b"no " * 8192),
    "an endless body in chunks": forever(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + b"x" * 4096 + b"\r\n"
    ),
    "a gzip bomb": lambda asked: [http_reply(gzip.compress(b" " * 30_000_000), Content_Encoding="gzip")],
    "gzip": lambda asked: [http_reply(gzip.compress(completion("red").encode()), Content_Encoding="gzip")],
    "gzip that is none": sends(completion("red"), Content_Encoding="gzip"),
    "brotli that is none": sends(completion("red"), Content_Encoding="br"),
    "100,000 brackets": sends("[" * 100_000),
    "100,000 brackets for its usage": says("red", usage="[" * 50_000 + "]" * 50_000),
    "900 brackets in an error": sends('{"error": {"message": ' + "[" * 900 + "]" * 900 + "}}", "400 no"),
    "headers of 300,000 bytes": sends(completion("red"), X_Long="x" * 300_000),
    "3,000 headers": lambda asked: [
        b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 3000 + b"\r\n" + completion("red").encode()
    ],
    "10,000 choices": sends(json.dumps({"choices": [{"message": {"content": "red"}}] * 10_000})),
    # counts
    "usage: Infinity": says("red", usage='{"prompt_tokens": Infinity, "completion_tokens": Infinity}'),
    "usage: NaN": says("red", usage='{"prompt_tokens": NaN, "completion_tokens": 1}'),
    "usage: less than none": says("red", usage='{"prompt_tokens": -5, "completion_tokens": 1}'),
    "usage: 5,000 digits": says("red", usage='{"prompt_tokens": ' + "9" * 5000 + ', "completion_tokens": 1}'),
    "usage: texts": says("red", usage='{"prompt_tokens": "many", "completion_tokens": true}'),
    "usage: a list": says("red", usage="[1, 2]"),
    "usage: details that are none": says("red", usage='{"completion_tokens_details": 7}'),
    # time
    "silence": hangs(),
    "silence after the headers": hangs(OPEN),
    "silence in the middle of an answer": hangs(BEGUN),
    "an answer a byte at a time": slowly(http_reply(completion("red"))),
    "headers a byte at a time": slowly(b"HTTP/1.1 200 OK\r\nX-A: " + b"b" * 2000),
    "100 Continue, again and again": forever(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.02),
    "closed at once": lambda asked: [],
    "closed in the middle": lambda asked: [http_reply(completion("red"), length=5000)],
    "shorter than it says": lambda asked: [http_reply(completion("red"), length=10)],
    "a torn chunk": lambda asked: [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\nred"],
    "429, come back tomorrow": sends("{}", "429 no", Retry_After="86400"),
    "429, come back never": sends("{}", "429 no", Retry_After="inf"),
    "429, come back yesterday": sends("{}", "429 no", Retry_After="-5"),
    "500, always again": sends("{}", "500 no", X_Should_Retry="true", retry_after_ms="1"),
    "400, always again": sends("{}", "400 no", X_Should_Retry="true", retry_after_ms="1"),
    # elsewhere
    "307 to another server": lambda asked: [http_reply("", "307 Go", Location=asked["other"])],
    "302 to another server": lambda asked: [http_reply("", "302 Go", Location=asked["other"])],
    "307 to another server, with the key in its address": lambda asked: [
        http_reply("", "307 Go", Location=f"{asked['other']}?key={KEY}")
    ],
    "307 to itself, for ever": lambda asked: [http_reply("", "307 Go", Location=asked["path"])],
    "307 to a file": sends("", "307 Go", Location="file:///etc/passwd"),
    "307 to nowhere": sends("", "307 Go", Location="http://[::bad/"),
    "307 without a place": sends("", "307 Go"),
    "307 on the same server": lambda asked: [
        http_reply(completion("red")) if "there" in asked["path"] else http_reply("", "307 Go", Location="/v1/there")
    ],
    # what is no completion
    "204": sends("", "204 No Content"),
    "101": sends("", "101 Switching Protocols"),
    "999": sends("{}", "999 Odd"),
    "another protocol": lambda asked: [b"SSH-2.0-OpenSSH_9.6\r\n"],
    "nothing": sends(""),
    "a list": sends("[1, 2]"),
    "null": sends("null"),
    "no choices": sends('{"choices": []}'),
    "choices by name": sends('{"choices": {"0": 1}}'),
    "no message": sends('{"choices": [{"message": null}]}'),
    "a number": says(7),
    "an object": says({"text": "red"}),
    "a call of a tool": says(None, tool_calls=[{"id": "1"}], finish="tool_calls"),
    "an ending that is a list": says("red", finish=["stop"]),
    "events instead of JSON": sends(f"data: {completion('red')}\n\n", Content_Type="text/event-stream"),
    "an error with 200": sends('{"error": {"message": "overloaded"}}'),
    "an error that is a number": sends('{"error": 7}', "400 no"),
    "an error whose code is a list": sends('{"error": {"message": "no", "code": [1], "param": {"a": 1}}}', "400 no"),
    "it always wants another word": fails("400 no", "use max_completion_tokens, 'temperature'", param="temperature"),
    "thoughts alone": says(None, finish="length", reasoning_content="hmm"),
    "a page as an answer": says("<script>alert(1)</script><img src=http://example.invalid/x>"),
    "a filtered answer": sends('{"error": {"message": "no", "code": "content_filter"}}', "400 no"),
}  # fmt: skip


def damaged(seed: int) -> Callable:
    """A completion with a few random bytes changed, put in or cut off."""
    dice = random.Random(seed)
    reply = bytearray(http_reply(completion("red", finish=dice.choice(["stop", "length"]))))
    for _ in range(dice.randint(1, 6)):
        place = dice.randrange(len(reply))
        reply[place : place + dice.choice([0, 1, 1, 4])] = dice.randbytes(dice.choice([0, 1, 1, 3]))
    return lambda asked: [bytes(reply)]


# ---- what it meets --------------------------------------------------------------------------------------------------


class OddServer(http.server.ThreadingHTTPServer):
    """It does to every request what `behaviour` says, and notes what reached it."""

    daemon_threads = True
    behaviour: Callable = staticmethod(says("red"))
    other = ""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.paths: list[str] = []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, request, client_address):
        pass  # whoever it floods goes away


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.paths.append(self.path)
        asked = {"path": self.path, "headers": dict(self.headers), "other": self.server.other}
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, b"\x02" + b"\0" * 15)
        with contextlib.suppress(OSError):
            for part in self.server.behaviour(asked):
                self.wfile.write(part)
                self.wfile.flush()
        self.close_connection = True

    do_GET = do_POST

    def log_message(self, *_):
        pass


def meet(place: str, folder: Path) -> list[str]:
    """Put the kit before the server of that address, in a project of that folder; what must not happen and did."""
    from auditkit import cli, specs
    from auditkit.consensus.choose import choose_same
    from auditkit.data.load import load_images
    from auditkit.errors import AuditError
    from auditkit.models.answers import AnswerBook
    from auditkit.models.load import load_model
    from auditkit.params import load_params
    from auditkit.report.summary import write_report
    from auditkit.runs import jsonl
    from auditkit.runs.folder import open_stage, run_folder

    spec = f"{place}?key=CAMPAIGN_KEY&batch_size=4#m"
    questions = ["what colour is it?", "is it red?", "how many are there?"]
    pictures = load_images("miniature").pictures("audit", 3, seed=3)
    shown, wrong = io.StringIO(), []

    def stage() -> None:
        p = load_params("params/smoke.yaml", references=[spec, "miniature:llava", "miniature:gemma3"], same=spec)
        run = open_stage(p, "01_models")
        AnswerBook(run.path("answers.jsonl")).ask(load_model(spec), pictures, questions, LIMIT)
        choose_same(p, run.folder).prepare([("what is it?", "car", "cart"), ("what is it?", "bus", "van")])
        run.finish({"models": 4})
        write_report(run_folder(p))

    began = time.monotonic()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        for what in (lambda: cli.main(["check", spec, "--as", "reference"]), stage):
            try:
                with contextlib.redirect_stdout(cli.VisibleStream(shown)):
                    what()
            except AuditError as error:
                print(f"auditkit: {error}", file=sys.stderr)
                if "\n" in str(error):
                    wrong.append(f"not one sentence: {error}")
            except BaseException as error:  # what the campaign is there to find
                place_ = traceback.extract_tb(error.__traceback__)[-1]
                wrong.append(
                    f"{type(error).__name__} in {Path(place_.filename).name}, line {place_.lineno}: {error}"[:300]
                )
    took = time.monotonic() - began
    if took > LONGEST:
        wrong.append(f"took {took:.1f} s")
    said = shown.getvalue()
    if "Traceback" in said:
        wrong.append("a traceback was shown")
    if found := CONTROL.search(said):
        wrong.append(f"{found[0]!r} reached the terminal in {said[max(0, found.start() - 40) : found.end() + 40]!r}")
    texts = {"what was shown": said}
    for path in folder.rglob("*"):
        if path.is_file():
            texts[str(path.relative_to(folder))] = path.read_text(encoding="utf-8", errors="surrogateescape")
    for name, text in texts.items():
        wrong += [f"a key in {name}" for secret in SECRETS if secret in text]
    report = next(iter(folder.rglob("report.html")), None)
    if report and ("<script" in texts[str(report.relative_to(folder))] or CONTROL.search(report.read_text())):
        wrong.append("the report holds a script or control characters")
    for book in folder.rglob("answers.jsonl"):
        try:
            rows = jsonl.read(book)
        except (AuditError, ValueError) as error:
            wrong.append(f"answers that cannot be read: {error}")
            continue
        keys = [(row["model"], row["picture"], row["question"]) for row in rows]
        if len(set(keys)) != len(keys) or any(len(row["answer"]) > 34 * LIMIT for row in rows):
            wrong.append("an answer is there twice, or longer than its limit")
        if (book.parent / "DONE").exists() and len(rows) != len(questions):
            wrong.append(f"{len(rows)} of {len(questions)} answers in a finished stage")
        if any(row["model"] != specs.parse(spec).name for row in rows):
            wrong.append("an answer of another model")
    return wrong


@contextlib.contextmanager
def surroundings(folder: Path) -> Iterator[None]:
    """A project in the folder, the secrets in the environment, and small bounds."""
    from auditkit.models import openai

    here, params = Path.cwd(), Path(__file__).parents[2] / "params" / "smoke.yaml"
    before, bounds = dict(os.environ), (openai.SECONDS, openai.RETRIES)
    for name in ("params", "notebooks"):
        (folder / name).mkdir(parents=True)
    (folder / "params" / "smoke.yaml").write_text(params.read_text(encoding="utf-8"), encoding="utf-8")
    os.environ |= {"CAMPAIGN_KEY": KEY, "HF_TOKEN": HUB, "WANDB_API_KEY": TRACKER, "NO_PROXY": "127.0.0.1"}
    os.environ |= {"HTTPS_PROXY": f"http://me:{PASSWORD}@proxy.invalid:80"}
    openai.SECONDS, openai.RETRIES = SECONDS, 1
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ |= before
        openai.SECONDS, openai.RETRIES = bounds


def chosen(n: int, seed: int) -> dict[str, Callable]:
    """So many behaviours: of the list, in random order, then damaged completions."""
    dice = random.Random(seed)
    names = dice.sample(sorted(BEHAVIOURS), min(n, len(BEHAVIOURS)))
    more = [dice.randrange(2**32) for _ in range(n - len(names))]
    return {name: BEHAVIOURS[name] for name in names} | {f"damaged, seed {one}": damaged(one) for one in more}


def campaign(behaviours: dict[str, Callable], say: Callable[[str], None] = lambda line: None) -> dict[str, list[str]]:
    """What went wrong under each of the behaviours that something went wrong under."""
    faults = {}
    server, other = OddServer(), OddServer()
    server.other = f"http://127.0.0.1:{other.server_port}/v1/chat/completions"
    try:
        for name, behaviour in behaviours.items():
            server.behaviour = behaviour
            other.paths.clear()
            with tempfile.TemporaryDirectory(prefix="campaign-") as place, surroundings(Path(place) / "project"):
                wrong = meet(f"http://127.0.0.1:{server.server_port}/v1", Path(place))
            wrong += ["another server was asked"] if other.paths else []
            if wrong:
                faults[name] = wrong
                say(f"{name}: {'; '.join(wrong)}")
    finally:
        for one in (server, other):
            one.shutdown()
            one.server_close()
    return faults


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--n", type=int, default=len(BEHAVIOURS), help="behaviours; default: all of the list")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", help="those whose name holds this text")
    given = options.parse_args()
    behaviours = chosen(given.n, given.seed)
    if given.only:
        behaviours = {name: what for name, what in behaviours.items() if given.only in name}
    began = time.monotonic()
    faults = campaign(behaviours, lambda line: print(line, flush=True))
    seconds = time.monotonic() - began
    print(f"{len(behaviours)} behaviours of servers, seed {given.seed}, {seconds:.0f} s: {len(faults)} with a fault")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
