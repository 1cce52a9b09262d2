"""Bad inputs by the thousand: parameter files, YAML, settings, models' texts, command lines, studies, gap tables, model
folders and adapters, made from a seed. Whatever comes in, a command ends in time with one sentence, exit code 2 (or 0
where the input is fine after all), no traceback, and no control character on the terminal.

    python -m tests.campaigns.inputs --n 1200 --seed 0

Nothing is run or downloaded: commands are those that only look, and the hub is a port at which nobody listens.
"""

import argparse
import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[2]
LIMIT = 60  # seconds, beyond which an input hangs
LONGEST = 2000  # characters of a sentence
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

TEXTS = [
    "", " ", ".", "..", "../..", "a/b", "a//b", "/", "~", "~nobody/x", "example", "my model/x y", "a--b/c", "-a/b",
    "hub:../../x", "hub:", "hub:a b/c", "hub:a/b?limit=²", "hub:x?nothing=1", "miniature:", "miniature:../../x",
    "miniature:nobody", "vllm:", "vllm:a/b?memory=nan", "http://", "http://:80/v1#x", "http://h:99999999/v1#x",
    "http://[::1/v1#x", "http://me:secret1234@h/v1#x", "https://h/v1", "http://h/v1?key=sk-123#x", "a/b?", "a/b?bits",
    "a/b?bits=5", "a/b?bits=4&bits=8", "a/b?batch_size=0", "a/b?batch_size=1e9", "a/b?max_pixels=nan", "a/b?x=y",
    "a/b?device=cuda:99999999999", "a/b?name=" + "n" * 400, "a/b?name=../x", "a/b?adapter=", "a/b?adapter=,,,",
    "a/b?adapter=/nowhere", "a/b?size=0x0", "a/b?size=9999999999999999999999", "a/b?guidance=inf",
    "a/b?batch_size=" + "9" * 5000, "x" * 300, "x/" * 5000, "y" * 100_000, "a\x1b[31mb/c", "a\x9b31m/b",
    "\u202eevil/x",
    "a\nb", "a\tb/c", "𝕬/𝖇", "ä/ö", "²", "٣", "é" * 200, "${HOME}", "$(ls)", "%s%n", "{0}", "\ud800", "null", "~/x/y",
    "C:\\x", "CON", "/dev/zero", "/dev/stdin", "/proc/self/mem", "/etc/passwd", "a/b/c/d", "<script>", "'", '"',
    "`", "#",
]  # fmt: skip
NUMBERS = [
    "nan", "-nan", "inf", "-inf", "1e999", "-1", "0", "-0.0", "0.5", "2", "4294967296", "1e10", "1_0", "0x10",
    "²", "٣",
    "9" * 30, "9" * 5000, "", " ", "1,000", "1e-400", "true", "None", "[1]", "{}", "1 2", "1\x1b[0m", "--1", "+1",
    "007",
]  # fmt: skip
VALUES = [
    None, True, False, 0, -1, 1, 2**32, 10**30, 1.5, -0.5, float("nan"), float("inf"), 1e308, "", "x", " ",
    "x" * 1000,
    "../x", [], [1], [None], ["a", "a"], [["a"]], {}, {"a": 1}, {"a": {"b": []}}, [{}], "\x1b]0;t\x07", "1e-5", "no",
    ["x" * 300], [True], "a\nb", "2026-02-30",
]  # fmt: skip
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)
PIECES = [
    "a: 2026-02-30", "a: 2026-02-20", "a: 0b_", "a: 0x_", "a: !!int x", "a: !!float x", "a: !!bool x", "a: !!null x",
    "a: !!timestamp x", "a: !!binary x", "a: !!omap x", "a: !!set [x]", "a: !!python/object/apply:os.system [ls]",
    "a: " + "9" * 5000, "a: 0x" + "f" * 5000, "a: " + "[" * 3000, "- " * 3000, "a: " + "{a: " * 3000, "? " * 3000,
    "a: &a [*a]", BOMB,
    "a: *b", "a: 1\na: 2", "seed: 1\nseed: 2", "\ta: 1", "a:\t1\n\tb: 2", "a: \0", 'a: "\\x1b[31m"', '"\\x1b[31m": 1',
    'a: "\\ud800"', "a: 'x", 'a: "x', "a: |\n x\x7f", "%YAML 9.0\n---\na: 1", "---\na: 1\n---\nb: 2", "a: b: c",
    "- a\nb: 1",
    "{[a]: 1}", "? {a: 1}\n: 2", "<<: [1]", "<<: *x", "a: =", "=: a", "a: <<", "a: @x", "a: `x", "a: %x",
    "a: !x y", "...",
    "1: 2", "null: 3", "2026-01-01: 3", "~: ~", "true: 1", "a: " + "1:" * 500 + "1", "x" * 200_000, "a: 1\n" * 30_000,
    "#" * 99_000, "\ufeff\ufeffa: 1", "a: \u2028b", "a: \x85b", "a: \u202eb", "", "null", "[]", "3", "text",
    "--- !!map x",
]  # fmt: skip
TEMPLATES = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "{{ 'x' * 10**10 }}",
    "{{ 1/0 }}",
    "{{ 10.0**1000 }}", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "{% if", "{{", "{{ 'x' * 10**8 }}",
    "{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__.os.popen('touch ran').read() }}", "{{ 9**9**9 }}",
    "{{ raise_exception('\x1b[31mred') }}", "{% include 'x' %}", "{{ messages[7].content }}", "{{ messages.x.y.z }}",
    "{{ undefined() }}", "{{ [1]|join(2) }}", "{{ '%999999999d'|format(1) }}", "{{ range(10**9)|list }}",
    "{{ lipsum(9999) }}",
    "{% set x = namespace(a=[]) %}{% for i in range(9999) %}{% set x.a = x.a + x.a + [1] %}{% endfor %}", "",
    "{" * 9000,
]  # fmt: skip
PATTERNS = [
    "(a+)+$",
    r"(.*.*.*.*.*.*.*.*.*.*)*x",
    "(",
    "[",
    "a{9999999999}",
    r"(?:\w+\.?)+!",
    r"((\w+)\.?)*\d\d\d$",
    "*",
    "",
]


@dataclass
class Input:
    """One bad input: its kind, what it is in words, and what does it, returning an exit code."""

    kind: str
    said: str
    act: Callable[[], int]


def command(*words: str) -> Callable[[], int]:
    """A command line, run in this process."""

    def act() -> int:
        from auditkit.cli import main

        return main(words)

    return act


def called(function: Callable[[], object]) -> Callable[[], int]:
    """A function of the kit, whose errors are told as the command line tells them."""

    def act() -> int:
        from auditkit.cli import one_line
        from auditkit.errors import AuditError

        try:
            function()
        except AuditError as error:
            print(f"auditkit: {one_line(str(error))}", file=sys.stderr)
            return 2
        return 0

    return act


def write(path: str, text: str | bytes) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return path


def smoke() -> str:
    return (
        (REPOSITORY / "params/smoke.yaml").read_text(encoding="utf-8").replace("params/smoke.yaml", "params/mine.yaml")
    )


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A file as a bad disk, a bad editor or a bad person leaves it."""
    at, to = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    way = rng.randrange(9)
    if way == 0:
        return data[:at]
    if way == 1:
        return data[:at] + data[to:]
    if way == 2:
        return data[:at] + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9))) + data[at:]
    if way == 3:
        return (
            data[:at]
            + rng.choice([b"\0", b"\x1b[2J", b"\xff\xfe", b"\t", b"\r", b"\xc2\x9b", b"\xed\xa0\x80"])
            + data[at:]
        )
    if way == 4:
        return data[:to] + data[at:]
    if way == 5:
        return data.decode("utf-8", "replace").encode(rng.choice(["utf-16", "utf-32", "utf-8-sig"]))
    if way == 6:
        return bytes(byte ^ (1 << rng.randrange(8)) if rng.random() < 0.01 else byte for byte in data)
    if way == 7:
        return data[:at] + rng.choice(PIECES).encode("utf-8", "replace") + data[at:]
    lines = data.splitlines(keepends=True)
    rng.shuffle(lines)
    return b"".join(lines)


def parameter_files(rng: random.Random) -> Input:
    data = damaged(smoke().encode(), rng)
    return Input("parameter file", repr(data[:60]), command("params", write("params/mine.yaml", data)))


def yaml_files(rng: random.Random) -> Input:
    piece = rng.choice(PIECES)
    text = rng.choice([piece, smoke() + piece + "\n", piece + "\n" + smoke()])
    return Input("yaml", piece[:60], command(rng.choice(["params", "run"]), write("params/mine.yaml", text)))


def keys(rng: random.Random) -> Input:
    from auditkit.params import FIELDS

    key, value = rng.choice([*FIELDS, "nobody", 3, None]), rng.choice(VALUES)
    values = yaml.safe_load(smoke()) | {key: value}
    values.pop(rng.choice(list(values)) if rng.random() < 0.1 else "", None)
    text = yaml.safe_dump(values, allow_unicode=True)
    return Input("key", f"{key}: {value!r}"[:80], command("params", write("params/mine.yaml", text)))


def settings(rng: random.Random) -> Input:
    from auditkit.params import FIELDS

    key = rng.choice([*FIELDS, "nobody", "", "path", "\x1b[31m"])
    given = f"{key}{rng.choice(['=', '=', '=', '=', '==', ''])}{rng.choice([*TEXTS, *NUMBERS])}"
    return Input("setting", given[:80], command("params", "params/smoke.yaml", "--set", given))


def model_texts(rng: random.Random) -> Input:
    key, text = rng.choice(["target", "peer", "references", "auditor", "same", "generator", "editor", "images"]), ""
    text = rng.choice(TEXTS)
    if rng.random() < 0.5:
        model, option = rng.choice(["miniature:target", "a/b", "vllm:a/b", ""]), rng.choice(OPTIONS)
        text = f"{model}?{option}={rng.choice([*NUMBERS, *TEXTS])}"
    if key == "images" and text.strip("./~") == "":  # the whole disk is no bad input: it is looked through
        text = "hub:" + text
    value = json.dumps([text, "miniature:llava"]) if key == "references" else text
    rest = ["--set", "ways=[question, regenerate, edit]"] if key in ("generator", "editor") else []
    return Input(
        "model's text", f"{key}={text}"[:80], command("plan", "params/smoke.yaml", "--set", f"{key}={value}", *rest)
    )


OPTIONS = ["bits", "batch_size", "max_pixels", "dtype", "device", "attention", "name", "adapter", "memory", "gpus",
           "revision",
           "trust_remote_code", "key", "price_in", "steps", "guidance", "size", "max_length", "offload", "cache",
           "nobody"]  # fmt: skip


def command_lines(rng: random.Random) -> Input:
    odd = rng.choice([*TEXTS, *NUMBERS])
    words = rng.choice([
        ["run", "params/smoke.yaml", "--only", odd], ["run", "params/smoke.yaml", "--from", odd],
        ["run", "params/smoke.yaml", "--only", f"0{rng.randrange(9)},{odd}"], ["run", odd], ["run"],
        ["run", "params/smoke.yaml", "--jobs", odd], ["run", "params/smoke.yaml", odd], ["params", odd],
        ["plan", "params/smoke.yaml", "--gpu", odd], ["plan", "params/smoke.yaml", "--gpus", odd], ["plan", odd],
        ["rounds", odd], ["rounds", "params/smoke.yaml", "--most", f"-{odd}"], ["check", odd],
        ["check", odd, "--as", "target"], ["check", "miniature:target", "--as", odd or "x"],
        ["check", "miniature:target", "--device", odd or "x"], ["check", "miniature:target", "--dtype", odd or "x"],
        ["export", odd, "--out", "out"], ["export", "none", "--out", odd], ["export", "none", "--out", "o",
        "--push", odd],
        ["bench", "--models", odd or "x", "--out", "o"], ["miniature", odd], ["miniature", "build", odd, "--out",
        "o"],
        ["miniature", "table", odd], ["miniature", "plant", odd, "--out", "o"], ["miniature", "build", "clean",
        "--steps", f"-{odd}"],
        ["judge", f"x{odd}"], [odd], [odd, odd], ["--" + odd], ["run", "--help" + odd], [],
    ])  # fmt: skip
    return Input("command line", " ".join(map(repr, words))[:100], command(*words))


def studies(rng: random.Random) -> Input:
    from auditkit.experiments.study import load_study

    good = yaml.safe_load((REPOSITORY / "params/study_ways.yaml").read_text(encoding="utf-8"))
    key = rng.choice([*good, "measures", "curve", "nobody"])
    text = yaml.safe_dump(good | {key: rng.choice(VALUES)}, allow_unicode=True)
    data = text.encode() if rng.random() < 0.6 else damaged(text.encode(), rng)
    path = write("params/study_mine.yaml", data)
    return Input("study", repr(data[:60]), called(lambda: load_study(path)))


def gap_tables(rng: random.Random) -> Input:
    from auditkit.miniature import gaps

    good = yaml.safe_load((REPOSITORY / "auditkit/miniature/target.yaml").read_text(encoding="utf-8"))
    row = rng.randrange(len(good))
    good[row] = rng.choice(
        [good[row] | {rng.choice(["name", "skill", "when", "says"]): rng.choice(VALUES)}, rng.choice(VALUES)]
    )
    text = yaml.safe_dump(good, allow_unicode=True).encode()
    path = write("gaps.yaml", text if rng.random() < 0.6 else damaged(text, rng))
    return Input("gap table", f"row {row}: {good[row]!r}"[:80], called(lambda: gaps.load(Path(path))))


def model_folders(rng: random.Random) -> Input:
    from auditkit.miniature import shipped
    from auditkit.models.load import load_model

    folder = Path(tempfile.mkdtemp(prefix="model-", dir="."))
    shutil.copytree(shipped.WEIGHTS / "target", folder, dirs_exist_ok=True)
    way = rng.choice(
        ["file", "file", "missing", "weights", "index", "template", "template", "pickle", "config", "config"]
    )
    files = sorted(path.name for path in folder.iterdir() if path.suffix != ".yaml")
    name = rng.choice(files)
    if way == "file":
        (folder / name).write_bytes(damaged((folder / name).read_bytes()[:300_000], rng))
    elif way == "missing":
        (folder / name).unlink()
    elif way == "weights":
        data, name = (folder / "model.safetensors").read_bytes(), "model.safetensors"
        (folder / name).write_bytes(
            rng.choice([b"", data[:7], data[:5000], data[:-1], b"\xff" * 8 + data[8:], data + b"x"])
        )
    elif way == "index":
        named = rng.choice(
            ["evil.bin", "../model.safetensors", "x.safetensors", "/etc/passwd", "", None, 3, ["a"], "a\x1b[0m.bin"]
        )
        index = rng.choice([{"weight_map": {"a": named}}, {"weight_map": named}, [named], named])
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        name = repr(index)
    elif way == "template":
        name = rng.choice(TEMPLATES)
        (folder / "chat_template.jinja").write_text(name)
    elif way == "pickle":
        (folder / "model.safetensors").rename(
            folder / rng.choice(["pytorch_model.bin", "model.bin", "model.pt", "x.ckpt"])
        )
    else:
        config = json.loads((folder / "config.json").read_text())
        inner = rng.choice([config, config["text_config"], config["vision_config"]])
        name = rng.choice(list(inner))
        inner[name] = rng.choice(VALUES)
        name = f"{name}: {inner[name]!r}"
        (folder / "config.json").write_text(json.dumps(config))
    said = f"{way}: {name}"[:80]
    if rng.random() < 0.3:
        return Input("model folder", said, command("plan", "params/smoke.yaml", "--set", f"target={folder}"))
    return Input("model folder", said, called(lambda: load_model(folder, device="cpu")))


def adapters(rng: random.Random) -> Input:
    from auditkit.models.load import load_model

    folder = Path(tempfile.mkdtemp(prefix="adapter-", dir="."))
    shutil.copytree(_adapter(), folder, dirs_exist_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    way = rng.choice(["pattern", "pattern", "key", "key", "file", "missing", "pickle"])
    said = way
    if way == "pattern":
        pattern = rng.choice(PATTERNS)
        config |= rng.choice([{"target_modules": pattern}, {"exclude_modules": pattern},
        {"rank_pattern": {pattern: 4}},
                              {"alpha_pattern": {pattern: 4}}, {"layers_pattern": pattern,
                              "layers_to_transform": [0]}])  # fmt: skip
        said = f"pattern {pattern}"
    elif way == "key":
        key = rng.choice(list(config))
        config[key] = rng.choice(VALUES)
        said = f"{key}: {config[key]!r}"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    name = rng.choice(["adapter_config.json", "adapter_model.safetensors"])
    if way == "file":
        (folder / name).write_bytes(damaged((folder / name).read_bytes(), rng))
    elif way == "missing":
        (folder / name).unlink()
    elif way == "pickle":
        (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    text = f"miniature:target?adapter={folder}" if rng.random() < 0.7 else str(folder)
    return Input("adapter", said[:80], called(lambda: load_model(text, device="cpu")))


def _adapter() -> Path:
    """An adapter of the target, made once."""
    folder = Path("adapter").absolute()
    if not folder.is_dir():
        from peft import LoraConfig, get_peft_model

        from auditkit.models.load import load_model
        from auditkit.models.lora import TEXT_PART

        model = load_model("miniature:target", device="cpu").model
        config = LoraConfig(r=2, target_modules=TEXT_PART)
        made = get_peft_model(model, config)
        made.peft_config["default"].base_model_name_or_path = "miniature:target"
        made.save_pretrained(folder)
    return folder


KINDS: list[tuple[Callable[[random.Random], Input], float]] = [
    (parameter_files, 0.16), (yaml_files, 0.14), (keys, 0.18), (settings, 0.14), (model_texts, 0.09),
    (command_lines, 0.11),
    (studies, 0.04), (gap_tables, 0.03), (model_folders, 0.07), (adapters, 0.04),
]  # fmt: skip


@contextlib.contextmanager
def project() -> Iterator[Path]:
    """A folder with the shipped parameter files, as working folder, and a hub that nobody answers for."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory(prefix="inputs-", ignore_cleanup_errors=True) as folder:
        (Path(folder) / "params").mkdir()
        for name in ("demo.yaml", "smoke.yaml"):
            shutil.copy(REPOSITORY / "params" / name, Path(folder) / "params" / name)
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


def tried(one: Input) -> tuple[str, float, int]:
    """(what is wrong with how an input ended, "" where nothing is; seconds; exit code)."""
    out, err, began, code = io.StringIO(), io.StringIO(), time.monotonic(), -1

    def late(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT)
    wrong = ""
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = one.act()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        wrong = f"{type(error).__name__}: {str(error)[:150]!r} at {Path(last.filename).name}:{last.lineno}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    seconds, said = time.monotonic() - began, err.getvalue()
    ours = [line for line in said.splitlines() if line.startswith("auditkit: ")]
    if not wrong and code not in (0, 2):
        wrong = f"exit code {code}"
    if not wrong and code == 2 and len(ours) != 1:
        wrong = f"{len(ours)} sentences: {said[-200:]!r}"
    if not wrong and code == 2 and said.partition(ours[0])[2].strip():
        wrong = f"more than one line: {said[-200:]!r}"
    if not wrong and code == 2 and len(ours[0]) > LONGEST:
        wrong = f"a sentence of {len(ours[0]):,} characters: {ours[0][:100]!r}"
    if not wrong and ("Traceback" in said or (found := CONTROL.search(out.getvalue() + said))):
        wrong = "a traceback" if "Traceback" in said else f"a control character, {found[0]!r}"
    return wrong, seconds, code


def campaign(n: int, seed: int, tell: Callable[[str], object] = print) -> list[str]:
    """Try n inputs and tell what came of them; what went wrong, a line each."""
    rng, codes, kinds, spent = random.Random(seed), Counter[int](), Counter[str](), Counter[str]()
    failed, slowest = [], (0.0, "")
    began = time.monotonic()
    tell(f"{n} inputs from seed {seed}")
    with project():
        for number in range(n):
            make = rng.choices([kind for kind, _ in KINDS], [share for _, share in KINDS])[0]
            one = make(rng)
            wrong, seconds, code = tried(one)
            codes[code] += 1
            kinds[one.kind] += 1
            spent[one.kind] += seconds
            slowest = max(slowest, (seconds, f"{one.kind}: {one.said}"))
            if wrong:
                failed.append(f"{number} {one.kind}: {one.said!r}: {wrong}")
                tell(failed[-1])
        if Path("ran").exists():
            failed.append("a chat template has run a command")
    tell(", ".join(f"{kind} {many} ({spent[kind]:.0f} s)" for kind, many in kinds.most_common()))
    tell(f"exit codes {dict(codes)}; slowest {slowest[0]:.1f} s ({slowest[1]!r})")
    tell(f"{len(failed)} of {n} ended otherwise than in one sentence, in {time.monotonic() - began:.0f} s")
    return failed


def main() -> int:
    """The command line; 0 where nothing went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.inputs")
    parser.add_argument("--n", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # before the hub's library is imported
    os.environ["HF_HUB_CACHE"] = os.path.join(tempfile.gettempdir(), "inputs-no-cache")
    return 1 if campaign(options.n, options.seed, lambda line: print(line, flush=True)) else 0


if __name__ == "__main__":
    sys.exit(main())
