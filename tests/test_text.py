"""What others wrote is shown as it is, commands nothing and holds no key: in messages, on the terminal, on disk."""

import json
import subprocess
import sys

import pytest

from auditkit import errors
from auditkit.cli import main
from auditkit.errors import AuditError, Unfinished
from auditkit.experiments.status import StatusLine
from auditkit.models.load import load_model
from auditkit.redact import keep_secret, redacted
from auditkit.runs import jsonl
from auditkit.runs.files import write_json, write_text
from auditkit.text import for_a_person, visible

EVIL = "\x1b]0;owned\x07 \x9b31m \u202eback \x00 \x7f \u2066 half \ud83d"
SHOWN = r"\x1b]0;owned\x07 \x9b31m \u202eback \x00 \x7f \u2066 half \ud83d"


@pytest.fixture
def secrets(monkeypatch, tmp_path):
    """Tokens and passwords where users have them."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.delenv("HF_TOKEN_PATH", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    cache = tmp_path / "home" / ".cache" / "huggingface"
    cache.mkdir(parents=True)
    (cache / "token").write_text("hf_fromThisFile0123\n")
    (tmp_path / "home" / ".netrc").write_text(
        "machine api.wandb.ai\n  login user\n  password 0123456789abcdeftracker\n"
    )
    (tmp_path / "home" / ".netrc").chmod(0o600)
    monkeypatch.setenv("HF_TOKEN", "hf_fromTheEnvironment1")
    monkeypatch.setenv("WANDB_API_KEY", "9876543210trackersown")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:p4ssw0rd-of-mine@proxy.example:8080")
    keep_secret("sk-given-as-a-key")
    return (
        "hf_fromThisFile0123", "0123456789abcdeftracker", "hf_fromTheEnvironment1", "9876543210trackersown",
        "p4ssw0rd-of-mine", "sk-given-as-a-key",
    )  # fmt: skip


def test_what_commands_or_hides_is_shown_as_an_escape():
    assert visible(EVIL) == SHOWN and visible(SHOWN) == SHOWN
    for kind in (AuditError, Unfinished):
        assert str(kind(EVIL)) == SHOWN and SHOWN.replace("\\", "\\\\") in repr(kind(EVIL))
    plain = "Ärger, काला, שלום \u200f, 日本 👩‍👩‍👧 “…” 5\N{NO-BREAK SPACE}%\n\tnext"
    assert for_a_person(plain) == plain


def test_no_token_tracker_key_or_password_is_shown_or_written(secrets, tmp_path):
    said = " / ".join(secrets) + " at https://someone:else@host.example/v1 and http://token@host"
    assert not [s for s in (*secrets, "someone", "token@") if s in str(AuditError(said))]
    write_text(tmp_path / "a.txt", said)
    write_json(tmp_path / "a.json", {"b": said})
    jsonl.append(tmp_path / "a.jsonl", [{"b": said}])
    jsonl.replace(tmp_path / "b.jsonl", [{"b": said}])
    for name in ("a.txt", "a.json", "a.jsonl", "b.jsonl"):
        assert not [secret for secret in secrets if secret in (tmp_path / name).read_text()], name
    assert json.loads((tmp_path / "a.json").read_text())["b"].count("(the key)") == len(secrets)


def test_settings_that_are_words_or_paths_are_no_secrets(monkeypatch, tmp_path):
    for name, value in {
        "SORT_KEY": "question",
        "A_TOKEN": "short1",
        "SSH_KEY": str(tmp_path),
        "KEYS": "b1gg3rth4n",
    }.items():
        monkeypatch.setenv(name, value)
    said = f"the question is short1 in {tmp_path}, b1gg3rth4n"
    assert redacted(said) == said


def test_half_characters_are_on_disk_and_come_back(tmp_path):
    rows = [{"key": "a", "answer": "red \ud83d"}, {"key": "b", "answer": "back\\slash \udcff"}]
    jsonl.append(tmp_path / "rows.jsonl", rows)
    assert jsonl.read(tmp_path / "rows.jsonl") == rows
    write_json(tmp_path / "one.json", rows)
    assert json.loads((tmp_path / "one.json").read_text()) == rows


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "params/\x1b[31mno\x07.yaml"],
        ["run", "params/\udcff\ud83d.yaml"],
        ["run", "params/demo.yaml", "--set", "se\x1b[31med=1"],
        ["run", "params/demo.yaml", "--only", "0\x1b]0;x\x07"],
        ["run", "params/evil.yaml"],
        ["params", "params/hidden.yaml"],
        ["check", "http://127.0.0.1:9/v1#\x1b[31mm"],
        ["check", "./\x1b]52;c;eA==\x07"],
        ["bogus\x1b[31m"],
    ],
)
def test_no_control_character_reaches_the_terminal(project, capsys, arguments):
    (project / "params" / "evil.yaml").write_text('"\\e[31mkey": 1\n')
    text = (project / "params" / "demo.yaml").read_text()
    (project / "params" / "hidden.yaml").write_text(text.replace("images: miniature", 'images: "folder\\e[31m"'))
    assert main(arguments) in (0, 2)
    printed = capsys.readouterr()
    assert visible(printed.out + printed.err) == printed.out + printed.err
    assert printed.out + printed.err and "Traceback" not in printed.err


def test_a_page_shows_escapes_of_text_and_of_what_is_markup_already():
    from markupsafe import Markup

    from auditkit.report.export import inline
    from auditkit.report.page import _template

    line = _template("rounds.html.j2").environment.from_string("{{ text }} {{ markup }}")
    shown = line.render(text="<b>\x1b[31m", markup=Markup("<i>\u202e</i>"))
    assert shown == r"&lt;b&gt;\x1b[31m <i>\u202e</i>"
    assert visible(inline("a\x1b\u202e")) == inline("a\x1b\u202e") != "a"


def test_an_unforeseen_error_commands_no_terminal_either(tmp_path):
    code = (
        "import sys\nfrom auditkit import cli\n"
        "def broken(*_, **__): raise RuntimeError('\\x1b]0;owned\\x07 hf_fromTheEnvironment1')\n"
        "cli.app = broken\nsys.argv = ['auditkit', 'x']\ncli.main()"
    )
    environment = {"PATH": "", "HF_TOKEN": "hf_fromTheEnvironment1", "HOME": str(tmp_path)}
    told = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": ":".join(sys.path)},
    )
    assert r"RuntimeError: \x1b]0;owned\x07 (the key)" in told.stderr and "\x1b" not in told.stderr


def test_the_status_line_shows_escapes(capsys):
    with StatusLine("04 train the auditor") as status:
        status.write(f"wrote {EVIL}\n")
        status.end("")
    assert f"wrote {SHOWN}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "spec", ["my/model\x1b[31m", "http://127.0.0.1:9/v1#m\x9b1m", "miniature:target\u202e", "a/b?name=\ud83d"]
)
def test_no_model_has_a_name_that_hides_something(spec):
    with pytest.raises(AuditError, match="holds no control characters"):
        load_model(spec)


def test_all_that_a_user_can_put_right_is_known_to_the_runner():
    """It is told by its name there, for a name is all that comes from a notebook's kernel."""
    kinds = [AuditError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    assert len(kinds) > 1 and all(getattr(errors, kind.__name__) is kind for kind in kinds)
