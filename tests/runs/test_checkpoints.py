"""Of a trainer's checkpoints the last whole one counts; a torn one is named and set aside."""

import pytest
from checkpoints import whole_checkpoint

from auditkit.runs.checkpoints import is_safetensors, last_checkpoint


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


NEEDED = ["trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors"]


@pytest.mark.parametrize("name", NEEDED)
@pytest.mark.parametrize("torn", [half, empty, lambda path: path.unlink()], ids=["half", "empty", "gone"])
def test_the_last_whole_one_counts_and_a_torn_one_is_named_and_set_aside(tmp_path, capsys, name, torn):
    for step in (9, 10, 11):
        whole_checkpoint(tmp_path, step)
    torn(tmp_path / "checkpoint-11" / name)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10"), "10 is after 9"
    assert not (tmp_path / "checkpoint-11").exists() and (tmp_path / "damaged" / "checkpoint-11").is_dir()
    said = capsys.readouterr().out
    assert "checkpoint-11 is torn (" in said and said.count("\n") == 1
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10") and capsys.readouterr().out == ""


def test_a_step_torn_twice_is_set_aside_twice(tmp_path):
    for _ in range(2):
        empty(whole_checkpoint(tmp_path, 4) / "optimizer.pt")
        assert last_checkpoint(tmp_path) is None
    assert [path.name for path in (tmp_path / "damaged").iterdir()] == ["checkpoint-4"]


def test_what_is_no_checkpoint(tmp_path):
    assert last_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / "checkpoint-last").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    whole_checkpoint(tmp_path, 3)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")


def test_safetensors_are_as_long_as_they_say(tmp_path):
    path = whole_checkpoint(tmp_path, 1) / "adapter_model.safetensors"
    assert is_safetensors(path)
    path.write_bytes(path.read_bytes() + b"x")
    assert not is_safetensors(path)
    path.write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    assert not is_safetensors(path), "and no header of a billion gigabytes is read"
