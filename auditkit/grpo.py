"""Train the auditor with GRPO to write questions on which the target departs from its references (paper, Sec. 3.2).

The trainer is TRL's own. What is the kit's stands here in sight: three rewards, each logged by name, and the replay.
It departs from the paper in five ways:

1) coverage. The paper's binary reward alone lets the auditor collapse to one question that often works. The `coverage`
   reward pays more for successes of a rare kind, and the *replay* adds a supervised loss on the auditor's own past
   successes, drawn evenly over kinds of question. A kind is a cluster of the questions' text (TF-IDF of words, k-means
   on what the untrained auditor writes): it knows nothing of the images, the target or its gaps.
2) the reward has a quorum of its own, by default all references, while an audit may count a majority: what two of three
   references get wrong alike would otherwise be learnt like any gap;
3) a question earns nothing if one of its tokens is next to impossible to the untrained auditor (`auditor.rarest`):
   otherwise what is no question at all is learnt, wherever references happen to say the same to it;
4) a well-formed question earns 1 by itself, and advantages are divided by the deviation of the whole step's rewards,
   not of each group's;
5) the trained weights are a LoRA adapter, whose checkpoints are small and resume exactly.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import TfidfVectorizer
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from auditkit import auditor as writing
from auditkit import disagreement, lines, runs, vlm
from auditkit.errors import AuditError
from auditkit.images import Picture
from auditkit.params import Params
from auditkit.rectify import TEXT_PART
from auditkit.vlm import VLM, AnswerBook

RECENT = 1000  # successes that novelty is measured against
CAP = 4.0  # a success of an unseen kind earns at most this much novelty
KEPT = 256  # successes kept for replay in each cluster


@dataclass(frozen=True)
class Rollout:
    """One completion of one step: what the auditor wrote, what the models answered, and whether that is a success."""

    key: str  # step and number in the step
    step: int
    picture: str
    text: str
    question: str | None
    target: str | None
    references: list[str]
    consensus: str | None
    success: bool  # the target departs from a consensus
    cluster: int  # kind of the question by its text, -1 if it is none
    tokens: list[int]  # the completion, its end token included


class Scorer:
    """Puts every completion of a step to target and references once, remembers it, and is read by all three rewards."""

    def __init__(
        self,
        target: VLM,
        references: Sequence[VLM],
        pictures: dict[str, Picture],
        kinds: Kinds,
        book: AnswerBook,
        p: Params,
        log: Path,
    ):
        self.target, self.references, self.pictures, self.kinds, self.book, self.p, self.log = (
            target,
            references,
            pictures,
            kinds,
            book,
            p,
            log,
        )
        self.same = disagreement.same(p.same)
        self.recent: deque[int] = deque(maxlen=RECENT)  # clusters of the latest successes
        self.bank: dict[int, dict[str, list[Rollout]]] = defaultdict(
            lambda: defaultdict(list)
        )  # cluster -> question -> successes
        self.step, self.rollouts = -1, []
        self.auditor: VLM | None = None  # with its adapter, which is switched off to see what it was before training

    def score(self, step: int, pictures: list[str], texts: list[str], tokens: list[list[int]]) -> list[Rollout]:
        """The rollouts of a step; computed at the first call of the step, in one batch a model."""
        if step == self.step:
            return self.rollouts
        with self.auditor.model.disable_adapter():
            rarest = writing.rarest(self.auditor, [self.pictures[key] for key in pictures], texts)
        likely = [chance is not None and chance >= self.p.min_token_probability for chance in rarest]
        questions = [writing.parse(text) if ok else None for text, ok in zip(texts, likely, strict=True)]
        asked = [i for i, question in enumerate(questions) if question]
        images, wording = [self.pictures[pictures[i]] for i in asked], [questions[i] for i in asked]
        answers = [
            self.book.ask(model, images, wording, self.p.max_answer_tokens) for model in (self.target, *self.references)
        ]
        said = dict(zip(asked, zip(*answers, strict=True), strict=True))
        clusters = dict(zip(asked, self.kinds.of(wording), strict=True))
        self.rollouts = []
        for i, text in enumerate(texts):
            target, *references = said.get(i, (None,))
            verdict = disagreement.judge(target, references, self.same, self.p.grpo_quorum) if i in said else None
            self.rollouts.append(
                Rollout(
                    f"{step}-{i}", step, pictures[i], text, questions[i], target, references,
                    verdict.consensus if verdict else None,
                    bool(verdict and verdict.disagrees), clusters.get(i, -1), list(map(int, tokens[i])),
                )
            )  # fmt: skip
        lines.append(self.log, map(asdict, self.rollouts))
        self.step = step
        return self.rollouts

    def remember(self, rollouts: Sequence[Rollout]) -> None:
        """Take successes into the replay bank and into what novelty is measured against. Called once a step, after the
        rewards.
        """
        for rollout in rollouts:
            if rollout.success:
                self.recent.append(rollout.cluster)
                kept = self.bank[rollout.cluster]
                kept[rollout.question].append(rollout)
                if sum(map(len, kept.values())) > KEPT:  # forget the oldest of the question that has most
                    max(kept.values(), key=len).pop(0)

    def novelty(self, cluster: int) -> float:
        """How rare a kind is among the latest successes: 1 for its even share, up to CAP."""
        share = (Counter(self.recent)[cluster] + 1) / (len(self.recent) + self.kinds.n)
        return min(CAP, 1 / (self.kinds.n * share))

    def replay(self, n: int, rng: random.Random) -> list[Rollout]:
        """Draw n past successes: a cluster, then a question in it, then one of its pictures, each evenly."""
        drawn = []
        for cluster in rng.choices(sorted(self.bank), k=n) if self.bank else ():
            question = rng.choice(sorted(q for q, kept in self.bank[cluster].items() if kept))
            drawn.append(rng.choice(self.bank[cluster][question]))
        return drawn


class Kinds:
    """Kinds of question by their text alone: k-means on words and word pairs of what the untrained auditor writes."""

    def __init__(self, questions: Sequence[str], n: int, seed: int):
        self.words = TfidfVectorizer(ngram_range=(1, 2), use_idf=False, token_pattern=r"\w+")
        features = self.words.fit_transform(questions)
        self.n = min(n, len(set(questions)))
        self.means = KMeans(self.n, n_init=4, random_state=seed).fit(features)

    def of(self, questions: Sequence[str]) -> list[int]:
        return self.means.predict(self.words.transform(questions)).tolist() if len(questions) else []


def rewards(scorer: Scorer) -> list[Callable]:
    """The three rewards, in TRL's form: each gets the completions of a step and returns one number a completion."""

    def score(completions, completion_ids, picture, trainer_state, **_):
        return scorer.score(trainer_state.global_step, picture, [c[0]["content"] for c in completions], completion_ids)

    def disagreement(**step) -> list[float]:
        """1 where the target departs from the references' consensus, else 0 (paper, Eq. 2)."""
        return [float(rollout.success) for rollout in score(**step)]

    def format(**step) -> list[float]:  # noqa: A001 (TRL logs a reward under its function's name)
        """1 for one well-formed question, 0 for anything else, also for what the untrained auditor would never say."""
        return [float(rollout.question is not None) for rollout in score(**step)]

    def coverage(**step) -> list[float]:
        """How rare the kind of question is among the latest successes; nothing without a success."""
        return [scorer.novelty(rollout.cluster) if rollout.success else 0.0 for rollout in score(**step)]

    return [disagreement, format, coverage]


class AuditorTrainer(GRPOTrainer):
    """TRL's GRPOTrainer, its loss with the cross-entropy of past successes added, evenly over kinds of question."""

    def __init__(self, *args, scorer: Scorer, replay_weight: float, **kwargs):
        super().__init__(*args, **kwargs)
        self.scorer, self.replay_weight = scorer, replay_weight

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        rollouts = self.scorer.rollouts
        self.scorer.remember(rollouts)
        drawn = self.scorer.replay(len(rollouts) // 2, random.Random(f"{self.args.seed}-{self.state.global_step}"))
        if self.replay_weight and drawn:
            again = self._replay_loss(model, drawn)
            self._metrics["train"]["replay_loss"].append(again.item())
            loss = loss + self.replay_weight * again
        self._metrics["train"]["distinct"].append(len({r.text for r in rollouts}) / len(rollouts))
        self._metrics["train"]["kinds"].append(len({r.cluster for r in rollouts if r.success}))
        return loss

    def _replay_loss(self, model, drawn: list[Rollout]) -> torch.Tensor:
        """Cross-entropy of the drawn completions [n, C] after their prompts [n, P], as one forward pass."""
        reader = VLM("auditor", model, self.processing_class)
        prompts = [vlm.chat(reader, writing.prompt())] * len(drawn)
        images = [[self.scorer.pictures[rollout.picture].image] for rollout in drawn]
        inputs = self.processing_class(
            text=prompts, images=images, padding=True, padding_side="left", return_tensors="pt"
        )
        completions = [torch.tensor(rollout.tokens) for rollout in drawn]
        width = max(map(len, completions))
        ids = torch.stack([torch.nn.functional.pad(c, (0, width - len(c)), value=-100) for c in completions])  # [n, C]
        inputs = {key: value.to(model.device) for key, value in inputs.items()}
        ids = ids.to(model.device)
        inputs["labels"] = torch.cat([torch.full_like(inputs["input_ids"], -100), ids], 1)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], ids.clamp(min=0)], 1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], (ids >= 0).long()], 1)
        for key in ("token_type_ids", "mm_token_type_ids"):  # text follows the prompt, never more image
            if key in inputs:
                inputs[key] = torch.cat([inputs[key], torch.zeros_like(ids)], 1)
        return model(**inputs).loss


class History(TrainerCallback):
    """One row a step, to a file and to whoever watches."""

    def __init__(self, path: Path, on_step: Callable[[dict], None] | None):
        self.path, self.on_step, self.started = path, on_step, time.time()

    def on_log(self, args, state, control, logs=None, **_):
        if not logs or "reward" not in logs:
            return
        row = {"step": state.global_step, "seconds": round(time.time() - self.started, 2)}
        row |= {f"reward/{name}": logs[f"rewards/{name}/mean"] for name in ("disagreement", "format", "coverage")}
        row |= {
            k: logs[k]
            for k in (
                "reward_std",
                "frac_reward_zero_std",
                "entropy",
                "kl",
                "replay_loss",
                "distinct",
                "kinds",
                "completions/mean_length",
            )
            if k in logs
        }
        lines.append(self.path, [row])
        if self.on_step:
            self.on_step(row)


def train(
    auditor: VLM,
    target: VLM,
    references: Sequence[VLM],
    pictures: Sequence[Picture],
    p: Params,
    out: Path,
    on_step: Callable[[dict], None] | None = None,
) -> list[dict]:
    """Train the auditor; return its history, one row a step.

    Writes to `out`: checkpoint-N (LoRA adapters, `grpo_checkpoints` of them, the last one trained to the end),
    rollouts.jsonl (every completion with all answers), answers.jsonl, history.jsonl. A run that was killed goes on
    from its last checkpoint and asks no model a question it has answered.

    Raises AuditError when there are too few pictures for one step, or when the untrained auditor writes no questions.
    """
    if len(pictures) < p.grpo_images:
        raise AuditError(
            f"train_images: {len(pictures)} pictures are fewer than grpo_images ({p.grpo_images}), so GRPO would train "
            "zero steps; raise the first or lower the second."
        )
    out.mkdir(parents=True, exist_ok=True)
    last = runs.last_checkpoint(out)
    done = int(last.rsplit("-", 1)[1]) if last else 0
    _forget_after(out, done)
    book = AnswerBook(out / "answers.jsonl")
    scorer = Scorer(
        target,
        references,
        {q.key: q for q in pictures},
        _kinds(auditor, pictures, p, out),
        book,
        p,
        out / "rollouts.jsonl",
    )
    for row in lines.read(out / "rollouts.jsonl"):
        scorer.remember([Rollout(**row)])
    if done < p.grpo_steps:
        trainer = AuditorTrainer(
            model=auditor.model,
            processing_class=auditor.processor,
            args=_config(p, out, auditor.model.device.type),
            reward_funcs=rewards(scorer),
            train_dataset=_dataset(pictures),
            peft_config=LoraConfig(
                r=p.grpo_lora_rank, lora_alpha=2 * p.grpo_lora_rank, target_modules=TEXT_PART, task_type="CAUSAL_LM"
            ),
            callbacks=[History(out / "history.jsonl", on_step)],
            scorer=scorer,
            replay_weight=p.replay_weight,
        )
        scorer.auditor = VLM("auditor", trainer.model, auditor.processor, p.batch_size)
        trainer.remove_callback(
            type(
                next(
                    c
                    for c in trainer.callback_handler.callbacks
                    if "Progress" in type(c).__name__ or "Printer" in type(c).__name__
                )
            )
        )
        trainer.train(resume_from_checkpoint=last)
    return lines.read(out / "history.jsonl")


def checkpoints(out: Path) -> dict[str, Path]:
    """The kept checkpoints, first to last: "step 60" -> folder.

    Raises AuditError when there is none.
    """
    folders = sorted(out.glob("checkpoint-*"), key=lambda folder: int(folder.name.rsplit("-", 1)[1]))
    if not folders:
        raise AuditError(f"{out}: no checkpoint of a trained auditor; run notebook 04 first")
    return {f"step {folder.name.rsplit('-', 1)[1]}": folder for folder in folders}


def _config(p: Params, out: Path, device: str) -> GRPOConfig:
    return GRPOConfig(
        output_dir=str(out),
        seed=p.seed,
        use_cpu=device == "cpu",
        bf16=device == "cuda",
        activation_checkpointing=device == "cuda",
        max_steps=p.grpo_steps,
        per_device_train_batch_size=p.grpo_images * p.group_size,
        steps_per_generation=1,
        num_generations=p.group_size,
        max_completion_length=p.max_question_tokens,
        temperature=p.grpo_temperature,
        learning_rate=p.grpo_learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, p.grpo_steps // 20),
        beta=p.grpo_beta,
        scale_rewards="batch",  # one deviation for all groups, so that a group with a single success is not blown up
        reward_weights=[1.0, 1.0, p.coverage_weight],
        logging_steps=1,
        save_strategy="steps",
        save_steps=max(1, p.grpo_steps // p.grpo_checkpoints),
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def _dataset(pictures: Sequence[Picture]) -> Dataset:
    """One row a picture, in the conversational form TRL expects, the picture's key riding along for the rewards.

    The image itself is read when its row is: thousands of photographs would be encoded anew and held all at once.
    """
    prompt = [{"role": "user", "content": writing.prompt()}]
    there = {q.key: q for q in pictures}
    rows = Dataset.from_dict({"prompt": [prompt] * len(pictures), "picture": list(there)})
    return rows.with_transform(lambda batch: {**batch, "image": [there[key].image for key in batch["picture"]]})


def _kinds(auditor: VLM, pictures: Sequence[Picture], p: Params, out: Path) -> Kinds:
    """Kinds of question, from what the untrained auditor writes about some of the pictures; written once, then read."""
    path = out / "untrained.json"
    if not path.exists():
        probes = writing.propose(auditor, pictures[:1000], p.grpo_temperature, p.max_question_tokens, p.seed)
        path.write_text(json.dumps([probe.question for probe in probes if probe.question]))
    return Kinds(json.loads(path.read_text()), p.replay_clusters, p.seed)


def _forget_after(out: Path, step: int) -> None:
    """Drop rows of steps that a killed run made after its last checkpoint: they are made again, the same."""
    for name, last in (("rollouts.jsonl", step - 1), ("history.jsonl", step)):
        rows = lines.read(out / name)
        kept = [row for row in rows if row["step"] <= last]
        if len(kept) < len(rows):
            new = out / f"{name}.new"
            new.unlink(missing_ok=True)
            lines.append(new, kept)
            new.touch()
            os.replace(new, out / name)
