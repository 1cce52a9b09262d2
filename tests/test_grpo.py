"""Training the auditor: what the rewards say, that the replay is even, and that a killed training goes on the same."""

import contextlib
import importlib.util
from dataclasses import replace
from types import SimpleNamespace

import pytest

from auditkit import grpo, lines, params, vlm
from auditkit.errors import AuditError
from auditkit.miniature.boards import Boards

QUESTIONS = [f"what colour is the object at {place}?" for place in ("a1", "b2", "c3", "d4")] + [
    f"how many {kind} objects are there?" for kind in ("red", "blue", "small", "striped")
]


@pytest.fixture
def p(repository):
    smoke = params.load(repository / "params" / "smoke.yaml")
    return replace(
        smoke, grpo_steps=4, grpo_images=2, group_size=4, grpo_checkpoints=2, train_images=16, replay_clusters=4
    )


def rollout(question: str, cluster: int, success: bool = True, key: str = "0-0") -> grpo.Rollout:
    return grpo.Rollout(key, 0, "train-0-0", question, question, "a", ["b", "b"], "b", success, cluster, [1, 2])


def scorer(tmp_path, kinds=None) -> grpo.Scorer:
    kinds = kinds or grpo.Kinds(QUESTIONS, 2, 0)
    return grpo.Scorer(None, [], {}, kinds, None, SimpleNamespace(same="text"), tmp_path / "rollouts.jsonl")


def test_kinds_come_from_the_text_alone():
    kinds = grpo.Kinds(QUESTIONS, 2, 0).of([*QUESTIONS, "what colour is the object at b4?"])
    assert len(set(kinds[:4])) == 1 and len(set(kinds[4:8])) == 1 and kinds[0] != kinds[4] and kinds[8] == kinds[0]


def test_rare_successes_are_worth_more(tmp_path):
    judge = scorer(tmp_path)
    judge.remember([rollout("q?", 0)] * 30)
    assert judge.novelty(0) < 0.6 < 1 < judge.novelty(1) <= grpo.CAP


def test_failures_are_not_remembered(tmp_path):
    judge = scorer(tmp_path)
    judge.remember([rollout("q?", 0, success=False)])
    assert not judge.recent and not judge.bank and judge.novelty(0) == 1.0


def test_the_replay_is_even_over_kinds_however_often_each_succeeded(tmp_path):
    import random

    judge = scorer(tmp_path)
    judge.remember([rollout("often?", 0)] * 200 + [rollout("rarely?", 1)] * 2)
    drawn = [one.question for one in judge.replay(400, random.Random(0))]
    assert 140 < drawn.count("rarely?") < 260


def test_the_bank_forgets_what_it_has_most_of(tmp_path):
    judge = scorer(tmp_path)
    judge.remember([rollout("often?", 0)] * (2 * grpo.KEPT) + [rollout("once?", 0)])
    assert len(judge.bank[0]["once?"]) == 1 and sum(map(len, judge.bank[0].values())) <= grpo.KEPT


def test_what_the_untrained_auditor_would_never_write_earns_nothing_and_is_not_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(grpo.writing, "rarest", lambda auditor, pictures, texts: [0.5, 0.0])
    judge, asked = scorer(tmp_path), []
    judge.p = SimpleNamespace(same="text", grpo_quorum=1.0, min_token_probability=1e-3, max_answer_tokens=8)
    judge.auditor = SimpleNamespace(model=SimpleNamespace(disable_adapter=contextlib.nullcontext))
    judge.target, judge.references, judge.pictures = "target", ["one", "other"], {"a": None}

    def ask(model, images, wording, longest):
        asked.extend(wording)
        return [model[:1]] * len(wording)  # "t" of the target, "o" of both references

    judge.book = SimpleNamespace(ask=ask)
    likely, unlikely = judge.score(0, ["a", "a"], QUESTIONS[:2], [[1], [2]])
    assert likely.success and likely.question == QUESTIONS[0] and set(asked) == {QUESTIONS[0]}
    assert unlikely.question is None and not unlikely.success


def models():
    named = [vlm.load(f"miniature:{name}") for name in ("auditor", "target", "gemma3", "idefics3", "llava")]
    return named[0], named[1], named[2:]


def test_too_few_pictures_are_refused(tmp_path, p):
    with pytest.raises(AuditError, match="train_images: 1 pictures are fewer than grpo_images"):
        grpo.train(None, None, [], Boards().pictures("train", 1, 0), p, tmp_path)


def test_a_killed_training_ends_in_the_same_records_and_asks_nothing_twice(tmp_path, p):
    pictures = Boards().pictures("train", p.train_images, p.seed)
    whole = grpo.train(*models(), pictures, p, tmp_path / "whole")
    assert [row["step"] for row in whole] == [1, 2, 3, 4]
    assert {"reward/disagreement", "reward/format", "reward/coverage", "entropy", "distinct"} <= set(whole[-1])

    def kill(row):
        if row["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grpo.train(*models(), pictures, p, tmp_path / "killed", on_step=kill)
    grpo.train(*models(), pictures, p, tmp_path / "killed")
    names = "key", "text", "target", "references", "success"
    records = [
        [[row[name] for name in names] for row in lines.read(tmp_path / run / "rollouts.jsonl")]
        for run in ("whole", "killed")
    ]
    assert records[0] == records[1] and len(records[0]) == 4 * 8
    asked = [
        (row["model"], row["picture"], row["question"]) for row in lines.read(tmp_path / "killed" / "answers.jsonl")
    ]
    assert len(asked) == len(set(asked))
    kept = grpo.checkpoints(tmp_path / "killed")
    assert list(kept) == ["step 2", "step 4"]
    assert (
        type(vlm.load("miniature:auditor", adapter=kept["step 4"]).model).__name__ == "Gemma3ForConditionalGeneration"
    )


@pytest.mark.parametrize(
    "rollouts, used, mode, sleeps",
    [
        ("transformers", False, "colocate", False),
        ("vllm_colocate", True, "colocate", True),
        ("vllm_server", True, "server", False),
    ],
)
def test_trl_is_told_who_generates(p, tmp_path, rollouts, used, mode, sleeps):
    config = grpo._config(replace(p, grpo_rollouts=rollouts), tmp_path, "cpu")
    assert (config.use_vllm, config.vllm_mode, config.vllm_enable_sleep_mode) == (used, mode, sleeps)
    assert config.vllm_max_model_length == 8192


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_rollouts_by_vllm_without_it_say_how_to_get_it(p, tmp_path):
    with pytest.raises(AuditError, match=r"grpo_rollouts: vllm_server needs vLLM.* pip install auditkit\[vllm\]"):
        grpo.train(None, None, [], [], replace(p, grpo_rollouts="vllm_server"), tmp_path)
