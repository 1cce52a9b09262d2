"""The audit on a local Ray cluster: whoever does the work, and however often it is killed, the records are the same."""

import socket
import sys
from functools import partial

import pytest

from auditkit.audit import loop
from auditkit.audit.batches import AnswerProbes
from auditkit.audit.loop import run_audit
from auditkit.audit.ray_backend import _gpus_a_worker, _Worker, each_batch
from auditkit.data.load import load_images
from auditkit.errors import AuditError
from auditkit.models.answers import AnswerBook
from auditkit.models.load import model_loader
from auditkit.params import load_params
from auditkit.runs import jsonl, progress

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")


class Killed(BaseException):
    """What a kill looks like to the code it hits: nothing catches it."""


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=2, num_gpus=0, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture
def p(repository, monkeypatch):
    monkeypatch.setattr(loop, "CHUNK", 16)
    return load_params(
        repository / "params" / "smoke.yaml", audit_probes=60, batch_size=16, candidates=2, engine="ray", workers=2
    )


def run(p, out):
    load = model_loader(p)
    auditors = {"untrained": partial(load, p.auditor), "the same": partial(load, p.auditor)}
    references = [partial(load, spec) for spec in p.references]
    pictures = load_images(p.images).pictures("audit", p.audit_probes, p.seed)
    tried = [{"way": "question", "question": q, "text": q, "success": "colour" in q} for q in ("what colour?", "why?")]
    return run_audit(auditors, partial(load, p.target), references, pictures, p, out, rollouts=tried)


def test_two_workers_killed_and_started_again_make_the_local_runs_records(cluster, p, tmp_path, monkeypatch, capsys):
    local = run(load_params(p.params_file, audit_probes=60, batch_size=16, candidates=2), tmp_path / "local")
    append, out, times = jsonl.append, tmp_path / "ray", []

    def killed_at_the_third(path, rows):
        if path == out / "records.jsonl":
            times.append(path)
            if len(times) == 3:  # the answers of this chunk are on file, its records are not
                raise Killed
        append(path, rows)

    monkeypatch.setattr(jsonl, "append", killed_at_the_third)
    with pytest.raises(Killed):
        run(p, out)
    monkeypatch.setattr(jsonl, "append", append)
    asked_twice = 8  # those of the 24 pictures of the untrained auditor about which it writes questions
    assert (
        len(jsonl.read(out / "proposals.jsonl")) == 60 + asked_twice
        and 28 <= len(jsonl.read(out / "records.jsonl")) <= 32
    )
    before = jsonl.read(out / "answers.jsonl")
    assert len(before) >= 4 * 40
    capsys.readouterr()
    monkeypatch.setattr(progress, "is_watched", lambda: True)
    monkeypatch.setattr(progress, "SOON", 0)

    assert run(p, out) == local
    assert jsonl.read(out / "records.jsonl") == jsonl.read(tmp_path / "local" / "records.jsonl") == local
    for name in ("proposals", "answers"):  # the same lines, as they came
        here, there = (sorted(map(str, jsonl.read(folder / f"{name}.jsonl"))) for folder in (out, tmp_path / "local"))
        assert here == there, name
    assert jsonl.read(out / "answers.jsonl")[: len(before)] == before
    said = capsys.readouterr()
    assert "answered by all models: 60 of 60" in said.out and "Running" not in said.out + said.err


def test_what_a_worker_finds_wrong_is_said_in_one_sentence(cluster, p, tmp_path):
    missing = partial(model_loader(p), str(tmp_path / "no_model"))
    work = AnswerProbes(missing, [missing], p, tmp_path)
    with pytest.raises(AuditError, match='no_model": no such model'):
        list(each_batch([{"probes": []}], work, p, AnswerBook(tmp_path / "answers.jsonl")))


def test_more_workers_than_the_cluster_has_room_for_are_refused(cluster, p, tmp_path):
    with pytest.raises(AuditError, match="workers: 3 need one CPU each, but the Ray cluster has 2"):
        run(load_params(p.params_file, engine="ray", workers=3), tmp_path)
    with pytest.raises(AuditError, match="workers: 2 need one GPU each, but the Ray cluster has 1"):
        _gpus_a_worker({"CPU": 64.0, "GPU": 1.0}, p)
    assert _gpus_a_worker({"CPU": 64.0, "GPU": 2.0}, p) == 1


def test_without_ray_it_says_what_to_install(p, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(AuditError, match=r"engine: ray needs one more package: pip install auditkit\[ray\]"):
        run(p, tmp_path)


def test_the_project_must_be_there_on_every_machine(p, tmp_path):
    worker = _Worker(None, p, str(tmp_path / "elsewhere"), False)
    with pytest.raises(AuditError, match="has no folder .*elsewhere"):
        worker._picture("audit-0-0")


def test_a_cluster_that_does_not_answer_is_said_at_once(p, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        with pytest.raises(AuditError, match=f"cannot join the cluster at RAY_ADDRESS={address} .*refused"):
            run(p, tmp_path)
