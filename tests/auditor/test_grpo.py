"""Training the auditor: what the rewards say, that the replay is even, and that a killed training goes on the same, in
one process or several, with a step's questions learnt from at once or in micro-batches.
"""

import contextlib
import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from auditkit.auditor import grpo, grpo_setup, rewards
from auditkit.auditor.clusters import TextClusters
from auditkit.auditor.rewards import CAP, KEPT, Rollout, Scorer
from auditkit.consensus.vote import vote
from auditkit.counterfactual.store import ImageStore
from auditkit.errors import AuditError
from auditkit.miniature.boards import Boards
from auditkit.models.base import answer_questions
from auditkit.models.load import load_model
from auditkit.models.offload import frozen_vision
from auditkit.params import load_params
from auditkit.report import progress
from auditkit.runs import jsonl
from auditkit.runs.folder import open_stage, run_folder

QUESTIONS = [f"what colour is the object at {place}?" for place in ("a1", "b2", "c3", "d4")] + [
    f"how many {kind} objects are there?" for kind in ("red", "blue", "small", "striped")
]


@pytest.fixture
def p(repository):
    smoke = load_params(repository / "params" / "smoke.yaml")
    return replace(
        smoke,
        ways=["question"],
        grpo_steps=4,
        grpo_images=2,
        group_size=4,
        grpo_checkpoints=2,
        train_images=16,
        replay_clusters=4,
    )


def rollout(question: str, cluster: int, success: bool = True, key: str = "0-0") -> Rollout:
    said = "a", ["b", "b"], "b", success
    return Rollout(key, 0, "train-0-0", question, question, question, *said, cluster, [1, 2])


def scorer(tmp_path, kinds=None) -> Scorer:
    kinds = kinds or TextClusters(QUESTIONS, 2, 0)
    return Scorer(
        None, [], {}, kinds, None, ImageStore({}, None), SimpleNamespace(same="text"), tmp_path / "rollouts.jsonl"
    )


def test_kinds_come_from_the_text_alone():
    kinds = TextClusters(QUESTIONS, 2, 0).of([*QUESTIONS, "what colour is the object at b4?"])
    assert len(set(kinds[:4])) == 1 and len(set(kinds[4:8])) == 1 and kinds[0] != kinds[4] and kinds[8] == kinds[0]


def test_rare_successes_are_worth_more(tmp_path):
    judge = scorer(tmp_path)
    judge.remember([rollout("q?", 0)] * 30)
    assert judge.novelty(0) < 0.6 < 1 < judge.novelty(1) <= CAP


def test_a_known_failure_is_worth_less_by_how_often_it_was_met(tmp_path):
    judge = scorer(tmp_path)
    judge.p = SimpleNamespace(known_discount=0.5)
    one, other = rollout("is it red?", 0), replace(rollout("is it red?", 0), target="c")
    assert judge.worth(one) == judge.worth(other) == 1
    judge.remember([replace(one, picture=f"train-0-{i}") for i in (1, 1, 2, 3)])  # twice of one picture is once
    judge.remember([replace(rollout("is it red?", 0, success=False), picture="train-0-9")])
    assert judge.worth(one) == 4**-0.5 and judge.worth(other) == 1, "another answer is another kind of failure"
    assert judge.worth(replace(one, cluster=1)) == 1
    judge.p.known_discount = 0.0
    assert judge.worth(one) == 1
    assert len(rewards.reward_functions(judge)) == 3, "nothing is added where nothing is taken off"


def test_what_is_closed_earns_nothing_and_is_not_replayed(tmp_path):
    judge, open_one, shut = scorer(tmp_path), rollout("is it blue?", 0), rollout("is it red?", 3)
    judge.closed = frozenset({3})
    assert [judge.earned(one) for one in (open_one, shut, rollout("is it?", 0, success=False))] == [2, 0, 1]
    judge.remember([open_one, shut])
    assert list(judge.bank[0]) == ["is it blue?"] and list(judge.recent) == [0]
    judge.score = lambda *_: [open_one, shut]
    judge.p = SimpleNamespace(known_discount=0.0)
    step = {"completions": [[{"content": ""}]] * 2, "completion_ids": None, "picture": None, "way": None}
    paid = [pay(**step, trainer_state=SimpleNamespace(global_step=0)) for pay in rewards.reward_functions(judge)]
    assert [of[1] for of in paid] == [0, 0, 0] and all(of[0] > 0 for of in paid)


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
    judge.remember([rollout("often?", 0)] * (2 * KEPT) + [rollout("once?", 0)])
    assert len(judge.bank[0]["once?"]) == 1 and sum(map(len, judge.bank[0].values())) <= KEPT


def test_what_the_untrained_auditor_would_never_write_earns_nothing_and_is_not_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(rewards, "rarest_token", lambda auditor, pictures, texts, ways: [0.5, 0.0])
    judge, asked = scorer(tmp_path), []
    judge.p = SimpleNamespace(
        seed=0, same="text", quorum=1.0, grpo_quorum=1.0, min_token_probability=1e-3, max_answer_tokens=8
    )
    judge.auditor = SimpleNamespace(model=SimpleNamespace(disable_adapter=contextlib.nullcontext))
    judge.target, judge.references, judge.pictures = "target", ["one", "other"], {"a": None}

    def ask(model, images, wording, longest):
        asked.extend(wording)
        return [model[:1]] * len(wording)  # "t" of the target, "o" of both references

    judge.book = SimpleNamespace(ask=ask)
    likely, unlikely = judge.score(0, ["a", "a"], ["question"] * 2, QUESTIONS[:2], [[1], [2]])
    assert likely.success and likely.question == QUESTIONS[0] and set(asked) == {QUESTIONS[0]}
    assert unlikely.question is None and not unlikely.success


def models():
    named = [load_model(f"miniature:{name}") for name in ("auditor", "target", "gemma3", "idefics3", "llava")]
    return named[0], named[1], named[2:]


def test_too_few_pictures_are_refused(tmp_path, p):
    with pytest.raises(AuditError, match="train_images: 1 pictures are fewer than grpo_images"):
        grpo.train_auditor(None, None, [], Boards().pictures("train", 1, 0), p, tmp_path)


def test_a_killed_training_ends_in_the_same_records_and_asks_nothing_twice(tmp_path, p):
    pictures = Boards().pictures("train", p.train_images, p.seed)
    whole = grpo.train_auditor(*models(), pictures, p, tmp_path / "whole")
    assert [row["step"] for row in whole] == [1, 2, 3, 4]
    assert {"reward/disagreement", "reward/format", "reward/coverage", "entropy", "distinct"} <= set(whole[-1])

    def kill(row):
        if row["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grpo.train_auditor(*models(), pictures, p, tmp_path / "killed", on_step=kill)
    grpo.train_auditor(*models(), pictures, p, tmp_path / "killed")
    names = "key", "text", "target", "references", "success"
    records = [
        [[row[name] for name in names] for row in jsonl.read(tmp_path / run / "rollouts.jsonl")]
        for run in ("whole", "killed")
    ]
    assert records[0] == records[1] and len(records[0]) == 4 * 8
    asked = [
        (row["model"], row["picture"], row["question"]) for row in jsonl.read(tmp_path / "killed" / "answers.jsonl")
    ]
    assert len(asked) == len(set(asked))
    kept = grpo.auditor_checkpoints(tmp_path / "killed")
    assert list(kept) == ["step 2", "step 4"]
    assert (
        type(load_model("miniature:auditor", adapter=kept["step 4"]).model).__name__ == "Gemma3ForConditionalGeneration"
    )


def test_a_training_that_is_interrupted_and_run_again_in_the_same_kernel_is_as_if_nothing_had_happened(
    tmp_path, p, capsys, monkeypatch
):
    """With the very models, as whoever runs the cell again has them; the curve never goes back."""
    drawn: list[list[int]] = []
    show = lambda figure, display_id: SimpleNamespace(update=lambda figure: None)  # noqa: E731
    monkeypatch.setattr(progress, "display", show)
    pictures, out, same = Boards().pictures("train", p.train_images, p.seed), tmp_path / "stopped", models()
    whole = grpo.train_auditor(*models(), pictures, p, tmp_path / "whole")
    for stopped_at in (1, 3):  # before the first checkpoint, and after it
        watch = progress.AuditorProgress(p.grpo_steps, out / "history.jsonl")

        def stop(row, watch=watch, stopped_at=stopped_at):
            watch(row)
            if row["step"] == stopped_at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            grpo.train_auditor(*same, pictures, p, out, on_step=stop)
        drawn.append([row["step"] for row in watch.history])
    watch = progress.AuditorProgress(p.grpo_steps, out / "history.jsonl")
    assert [row["step"] for row in watch.history] == [1, 2], "as far as the last checkpoint"
    again = grpo.train_auditor(*same, pictures, p, out, on_step=watch)
    drawn.append([row["step"] for row in watch.history])
    assert drawn == [[1], [1, 2, 3], [1, 2, 3, 4]]
    said = capsys.readouterr().out
    assert "1 step was made, but no checkpoint yet: it starts again with step 1." in said
    assert "3 steps were made; it goes on after step 2, its last checkpoint." in said
    untimed = [[{k: v for k, v in row.items() if k != "seconds"} for row in rows] for rows in (whole, again)]
    assert untimed[0] == untimed[1]


def test_a_torn_checkpoint_costs_the_steps_since_the_last_whole_one(tmp_path, p, capsys):
    pictures = Boards().pictures("train", p.train_images, p.seed)
    grpo.train_auditor(*models(), pictures, p, tmp_path)
    last, names = tmp_path / "checkpoint-4", ("key", "text", "target", "references", "success")
    weights = (last / "adapter_model.safetensors").read_bytes()
    wrote = [[row[name] for name in names] for row in jsonl.read(tmp_path / "rollouts.jsonl")]
    (last / "optimizer.pt").write_bytes((last / "optimizer.pt").read_bytes()[:1000])
    capsys.readouterr()
    history = grpo.train_auditor(*models(), pictures, p, tmp_path)
    said = capsys.readouterr().out
    assert "checkpoint-4 is torn (optimizer.pt is cut or damaged): set aside as" in said
    assert (tmp_path / "damaged" / "checkpoint-4").is_dir() and [row["step"] for row in history] == [1, 2, 3, 4]
    assert (last / "adapter_model.safetensors").read_bytes() == weights
    assert [[row[name] for name in names] for row in jsonl.read(tmp_path / "rollouts.jsonl")] == wrote


def test_with_checkpointing_no_way_back_leads_through_the_vision_tower_and_the_weights_are_the_same(
    tmp_path, p, checkpointing, monkeypatch
):
    pictures = Boards().pictures("train", p.train_images, p.seed)
    p = replace(p, grpo_steps=2, grpo_checkpoints=1, grpo_micro_batch=4)
    weights, back = [], []
    for vision in (frozen_vision, lambda model: contextlib.nullcontext()):
        monkeypatch.setattr(grpo, "frozen_vision", vision)
        auditor, target, references = models()
        tower, passed = auditor.model.get_encoder(modality="image"), []
        tower.register_forward_hook(lambda part, given, out, passed=passed: passed.append(out[0].requires_grad))
        out = tmp_path / str(len(weights))
        grpo.train_auditor(auditor, target, references, pictures, p, out)
        weights.append((out / "checkpoint-2" / "adapter_model.safetensors").read_bytes())
        back.append(any(passed))
        assert "forward" not in vars(tower)
    assert weights[0] == weights[1] and back == [False, True]


def test_the_warm_up_is_a_share_of_the_steps(p):
    for steps in range(1, 2001):  # the default is what it was before there was a choice
        assert grpo_setup.warmup_steps(replace(p, grpo_steps=steps, grpo_warmup=0.05)) == max(1, steps // 20)
    assert grpo_setup.warmup_steps(replace(p, grpo_steps=1000, grpo_warmup=0.1)) == 100
    assert grpo_setup.warmup_steps(replace(p, grpo_steps=1000, grpo_warmup=0.0)) == 0


def test_the_learning_rate_falls_to_the_last_one(p, tmp_path):
    """The paper: AdamW, 3e-6, a tenth of the steps to warm up, then a cosine to 1e-6."""
    from transformers import get_scheduler

    paper = {"grpo_steps": 100, "grpo_learning_rate": 3e-6, "grpo_last_learning_rate": 1e-6, "grpo_warmup": 0.1}
    config = grpo_setup.grpo_config(replace(p, **paper), tmp_path, "cpu", torch.float32)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    schedule = get_scheduler(
        config.lr_scheduler_type,
        optimizer,
        config.warmup_steps,
        100,
        scheduler_specific_kwargs=config.lr_scheduler_kwargs,
    )
    rates = []
    for _ in range(101):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == 0 and max(rates) == rates[10] == 3e-6 and rates[-1] == pytest.approx(1e-6)
    assert min(rates[10:]) >= 1e-6 * (1 - 1e-9)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_step_is_one_generation_and_one_update_over_all_processes(p, tmp_path, processes, monkeypatch):
    p = replace(p, grpo_images=4, group_size=4, grpo_micro_batch=2)
    monkeypatch.setattr(grpo_setup.GRPOConfig, "world_size", processes)
    config = grpo_setup.grpo_config(p, tmp_path, "cpu", torch.float32, processes)
    assert config.per_device_train_batch_size == 2
    assert config.gradient_accumulation_steps == config.steps_per_generation == 16 // 2 // processes
    assert config.generation_batch_size == 16


def test_what_cannot_be_dealt_out_evenly_is_refused(p):
    p = replace(p, grpo_images=4, group_size=4)
    with pytest.raises(AuditError, match="grpo_images x group_size: a step's 16 questions .* 3 processes"):
        grpo_setup.refuse_uneven(p, 3)
    with pytest.raises(AuditError, match="grpo_micro_batch: 8 does not divide the 4 questions .* 4 processes"):
        grpo_setup.refuse_uneven(replace(p, grpo_micro_batch=8), 4)
    grpo_setup.refuse_uneven(replace(p, grpo_micro_batch=2), 4)


def test_the_command_line_says_in_one_sentence_what_is_wrong(project, capsys):
    assert grpo.main(["params/smoke.yaml", "--set", "grpo_micro_batch=3"]) == 2
    assert capsys.readouterr().err.startswith("auditkit: grpo_micro_batch: 3 does not divide")


def test_micro_batches_learn_the_same(tmp_path, p):
    pictures = Boards().pictures("train", p.train_images, p.seed)
    p = replace(p, grpo_images=4, group_size=4, grpo_steps=3, grpo_checkpoints=1)
    weights, wrote, rows = [], [], []
    for micro_batch in (0, 4):
        out = tmp_path / str(micro_batch)
        rows.append(grpo.train_auditor(*models(), pictures, replace(p, grpo_micro_batch=micro_batch), out))
        weights.append(load_file(out / "checkpoint-3" / "adapter_model.safetensors"))
        wrote.append([row["text"] for row in jsonl.read(out / "rollouts.jsonl")])
    assert wrote[0] == wrote[1] and len(wrote[0]) == 3 * 16
    for name, whole in weights[0].items():
        assert (weights[1][name] - whole).norm() <= 1e-5 * whole.norm(), name
    assert any(name.endswith("lora_B.weight") and whole.norm() > 0 for name, whole in weights[0].items())
    for at_once, in_parts in zip(*rows, strict=True):
        assert "replay_loss" in rows[0][-1]
        for name in ("replay_loss", "distinct", "kinds", "reward/disagreement"):
            assert in_parts.get(name) == pytest.approx(at_once.get(name), rel=1e-5), name


def test_references_that_never_agree_end_a_training_with_what_was_asked_kept(tmp_path, p):
    pictures, said = Boards().pictures("train", p.train_images, p.seed), iter(range(10**6))
    auditor, target, references = models()
    for reference in references:
        reference.write = lambda images, prompts, *how: [f"{next(said)}" for _ in prompts]
    with pytest.raises(
        AuditError, match=r"grpo_quorum: in 4 steps the references never agreed .* lower it \(now 1.0\)"
    ):
        grpo.train_auditor(auditor, target, references, pictures, p, tmp_path)
    assert len(jsonl.read(tmp_path / "rollouts.jsonl")) == 4 * 8 and jsonl.read(tmp_path / "answers.jsonl")


PROCESS = """
import os, signal, sys
import torch
from auditkit.auditor import grpo

class Watched(grpo.AuditorTrainer):
    def train(self, *arguments, **options):
        super().train(*arguments, **options)
        weights = {name: w.detach() for name, w in self.model.named_parameters() if w.requires_grad}
        torch.save(weights, f"rank{self.accelerator.process_index}.pt")

def say(row):
    if row["step"] == int(os.environ["KILL_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)

grpo.AuditorTrainer, grpo._say = Watched, say
sys.exit(grpo.main())
"""


def test_two_processes_train_one_auditor_are_killed_and_go_on(project):
    (project / "process.py").write_text(PROCESS)
    shape = {"train_images": 16, "grpo_steps": 4, "grpo_images": 2, "group_size": 4, "grpo_checkpoints": 2}
    shape |= {"grpo_micro_batch": 2, "replay_clusters": 4}
    shape |= {"ways": ["question"], "seed": 1}  # of seed 0's 32 questions none succeeds, so there is nothing to learn
    settings = [word for name, value in shape.items() for word in ("--set", f"{name}={value}")]
    # "--multi_gpu" is how accelerate spells several processes; without a GPU they speak through gloo
    launch = "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    launch = [sys.executable, "-m", *launch.split(), "--dynamo_backend", "no", "--main_process_port", "0"]
    package = str(Path(grpo.__file__).parents[2])

    def run(kill_at: int) -> subprocess.CompletedProcess:
        environment = os.environ | {"KILL_AT": str(kill_at), "OMP_NUM_THREADS": "1", "PYTHONPATH": package}
        command = [*launch, "process.py", "params/smoke.yaml", *settings]
        return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=300)

    assert run(kill_at=3).returncode != 0
    p = load_params("params/smoke.yaml", **shape)
    out = run_folder(p) / "04_auditor"
    assert grpo.auditor_checkpoints(out).keys() == {"step 2"} and (out / "answers.1.jsonl").exists()
    done = run(kill_at=0)
    assert done.returncode == 0, done.stderr
    assert "smoke: 2 process(es)" in done.stdout and done.stdout.count("smoke: trained for 4 steps") == 1

    ranks = [torch.load(project / f"rank{rank}.pt") for rank in (0, 1)]
    assert ranks[0].keys() == ranks[1].keys() and any("lora_B" in name and w.any() for name, w in ranks[0].items())
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0])

    written = [Rollout(**row) for row in jsonl.read(out / "rollouts.jsonl")]
    assert [rollout.key for rollout in written] == [f"{step}-{i}" for step in range(4) for i in range(8)]
    answers = jsonl.read(out / "answers.jsonl")  # both processes', collected
    assert not list(out.glob("answers.*.jsonl"))
    said = {(row["model"], row["picture"], row["question"]): row["answer"] for row in answers}
    assert len(said) == len(answers)
    asked = [rollout for rollout in written if rollout.question]
    assert {(r.picture, r.question) for r in asked} == {(picture, question) for _, picture, question in said}

    # What one process would have made: the same pictures in the same order, the same answers to the same questions.
    # The questions are others, since each process has a random stream of its own.
    auditor, target, references = models()
    pictures = {picture.key: picture for picture in Boards().pictures("train", p.train_images, p.seed)}
    alone = project / "alone"
    grpo.train_auditor(
        auditor, target, references, list(pictures.values()), replace(p, grpo_steps=1, grpo_checkpoints=1), alone
    )
    assert [row["picture"] for row in jsonl.read(alone / "rollouts.jsonl")] == [r.picture for r in written[:8]]
    images, questions = [pictures[r.picture].image for r in asked], [r.question for r in asked]
    for model, heard in [(target, [r.target for r in asked])] + [
        (model, [r.references[i] for r in asked]) for i, model in enumerate(references)
    ]:
        assert answer_questions(model, images, questions, p.max_answer_tokens) == heard
    for rollout in asked:
        assert rollout.success == vote(rollout.target, rollout.references, quorum=p.grpo_quorum).disagrees

    # Notebook 04 finds it trained.
    history = grpo.train_auditor(
        auditor, target, references, list(pictures.values()), p, open_stage(p, "04_auditor").folder
    )
    assert [row["step"] for row in history] == [1, 2, 3, 4] and len(jsonl.read(out / "rollouts.jsonl")) == 32


@pytest.mark.parametrize(
    "rollouts, used, mode, sleeps",
    [
        ("transformers", False, "colocate", False),
        ("vllm_colocate", True, "colocate", True),
        ("vllm_server", True, "server", False),
    ],
)
def test_trl_is_told_who_generates(p, tmp_path, rollouts, used, mode, sleeps):
    config = grpo_setup.grpo_config(replace(p, grpo_rollouts=rollouts), tmp_path, "cpu", torch.float32)
    assert (config.use_vllm, config.vllm_mode, config.vllm_enable_sleep_mode) == (used, mode, sleeps)
    assert config.vllm_max_model_length == 8192


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_rollouts_by_vllm_without_it_say_how_to_get_it(p, tmp_path):
    with pytest.raises(AuditError, match=r"grpo_rollouts: vllm_server needs vLLM.* pip install auditkit\[vllm\]"):
        grpo.train_auditor(None, None, [], [], replace(p, grpo_rollouts="vllm_server"), tmp_path)


def test_what_several_processes_filed_is_collected_once(tmp_path):
    answer = {"model": "m", "picture": "p", "question": "q", "answer": "red"}
    judged = {"judge": "j", "question": "q", "a": "red", "b": "blue", "reply": "no"}
    jsonl.append(tmp_path / "answers.jsonl", [answer])
    jsonl.append(tmp_path / "answers.1.jsonl", [answer, answer | {"question": "r"}])
    jsonl.append(tmp_path / "judged.2.jsonl", [judged])
    grpo._collect(tmp_path)
    assert jsonl.read(tmp_path / "answers.jsonl") == [answer, answer | {"question": "r"}]
    assert jsonl.read(tmp_path / "judged.jsonl") == [judged]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.jsonl", "judged.jsonl"]


def test_what_is_known_is_taken_off_the_reward_by_the_rollouts_of_the_steps_before(tmp_path, p):
    p = replace(p, grpo_steps=3, grpo_images=8, train_images=24, replay_clusters=1, known_discount=1.0)
    pictures = Boards().pictures("train", p.train_images, p.seed)
    models = [load_model(f"miniature:{name}") for name in ("auditor", "target", "gemma3", "idefics3", "llava")]
    history = grpo.train_auditor(models[0], models[1], models[2:], pictures, p, tmp_path)
    rollouts, judge, off = [Rollout(**row) for row in jsonl.read(tmp_path / "rollouts.jsonl")], scorer(tmp_path), []
    judge.p = p
    for step in range(3):
        of_step = [one for one in rollouts if one.step == step]
        off.append(sum(judge.worth(one) - 1 for one in of_step if one.success) / len(of_step))
        judge.remember(of_step)
    assert [row["reward/known"] for row in history] == pytest.approx(off) and off[0] == 0 > min(off)
    won = [sum(one.success for one in rollouts if one.step == step) / 32 for step in range(3)]
    assert [row["reward/disagreement"] for row in history] == pytest.approx(won), "success is told as it is"
