"""Whatever a YAML file holds, it is read within a second, or refused in one sentence that names the line."""

import time

import pytest

from auditkit.errors import AuditError
from auditkit.params import load_params
from auditkit.yaml_file import DEEPEST, LARGEST, MOST, parse_yaml, read_yaml

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: 1\nb: 2026-02-30", 2, "'2026-02-30' is no timestamp; text is put in quotes"),
        ("a: 0b_", 1, "'0b_' is no int"),
        ("a: !!int x", 1, "'x' is no int"),
        ("a: !!timestamp x", 1, "'x' is no timestamp"),
        ("a:\n - " + "9" * 5000, 2, "a number of 5,000 characters"),
        ("a: 0x" + "f" * 5000, 1, "a number of 5,002 characters"),
        ("a: " + "[" * 3000, 1, f"more than {DEEPEST} levels"),
        ("- " * 3000, 1, f"more than {DEEPEST} levels"),
        (BOMB, 5, f"more than {MOST:,} values, aliases counted"),
        ("a: &a [*a]", 1, "an alias stands inside what it repeats"),
        ("b: 1\na: 1\na: 2", 3, "a is given twice; keep one"),
        ("a: 1\n\tb: 2", 2, "not readable as YAML (found character"),
        ("a: 1\nb: \0", 2, "the character U+0000 is not allowed"),
        ('a: 1\nb: "\\x1b[31m"', 2, "a text holds U+001B, which nobody sees"),
        ('"\\ud800": 1', 1, "a text holds U+D800"),
        ("a: !!python/object/apply:os.system [ls]", 1, "could not determine a constructor"),
        ("{[a]: 1}", 1, "found unhashable key"),
        ("a: 'x", 1, "found unexpected end of stream"),
    ],
)
def test_what_the_parser_chokes_on_is_one_sentence_with_its_line(tmp_path, text, line, said):
    file = tmp_path / "mine.yaml"
    file.write_bytes(text.encode())
    began = time.process_time()
    with pytest.raises(AuditError) as error:
        read_yaml(file)
    assert time.process_time() - began < 1
    assert str(error.value).startswith(f"mine.yaml, line {line}: ") and said in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("size", [LARGEST + 1, 10_000_000])
def test_a_file_of_megabytes_is_not_parsed(tmp_path, size):
    (tmp_path / "mine.yaml").write_bytes(b"x" * size)
    began = time.process_time()
    with pytest.raises(AuditError, match=r"mine.yaml: longer than 100,000 characters"):
        read_yaml(tmp_path / "mine.yaml")
    assert time.process_time() - began < 0.5


def test_bytes_that_are_no_text_are_named_by_their_line(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(AuditError, match="mine.yaml, line 2: .*no text in UTF-8"):
        read_yaml(tmp_path / "mine.yaml")


def test_plain_yaml_is_read_as_ever(tmp_path):
    text = "\ufeffa: &one [1, 2.5, x]\nb: {c: true, d: ~, <<: {e: 2026-02-20}}\nf: *one\ng: |\n  two\n  lines\n"
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    found = read_yaml(tmp_path / "mine.yaml")
    assert found["a"] is found["f"] and found["a"] == [1, 2.5, "x"] and found["g"] == "two\nlines\n"
    assert found["b"]["c"] is True and found["b"]["d"] is None and str(found["b"]["e"]) == "2026-02-20"
    assert parse_yaml("", "nothing") is None


def test_the_shipped_files_are_far_from_the_bounds(repository):
    files = [*(repository / "params").glob("*.yaml"), *(repository / "auditkit/miniature").glob("*.yaml")]
    assert len(files) > 15
    for file in files:
        assert read_yaml(file) and len(file.read_bytes()) < LARGEST / 10


def test_a_date_is_no_text(project):
    text = (project / "params/demo.yaml").read_text().replace("run_name: demo", "run_name: 2026-02-20")
    (project / "params/demo.yaml").write_text(text)
    with pytest.raises(AuditError, match="run_name: YAML reads this as 2026-02-20, not as text; put it in quotes"):
        load_params("params/demo.yaml")
