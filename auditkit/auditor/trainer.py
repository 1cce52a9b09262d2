"""TRL's GRPOTrainer with the replay of past successes, and one row of history a step."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from auditkit.auditor.collapse import LATELY, find_collapse, step_measures
from auditkit.auditor.rewards import Rollout, Scorer
from auditkit.auditor.trial import FamilyTrainer
from auditkit.auditor.write import auditor_prompt
from auditkit.models import processors
from auditkit.models.trainer_internals import log_metric, micro_batch
from auditkit.params import WAYS, Params
from auditkit.runs import jsonl

NUMBERED = list(WAYS)  # a trainer logs numbers, so a way is one


class AuditorTrainer(FamilyTrainer):
    """TRL's GRPOTrainer, with the cross-entropy of past successes in its loss, evenly over clusters of them."""

    def __init__(self, *args, scorer: Scorer, replay_weight: float, **kwargs):
        super().__init__(*args, **kwargs)
        self.scorer, self.replay_weight, self.drawn = scorer, replay_weight, []

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        rollouts, part = self.scorer.rollouts, micro_batch(self)
        if part == 0:  # the first micro-batch of a step
            self.scorer.remember(rollouts)
            own = len(rollouts) // self.accelerator.num_processes
            seed = f"{self.args.seed}-{self.state.global_step}"
            self.drawn = self.scorer.replay(own // 2 * self.accelerator.num_processes, random.Random(seed))
            for name, value in self._measures(rollouts).items():
                log_metric(self, name, value)
        if self.replay_weight and self.drawn:
            loss = loss + self.replay_weight * self._replay_share(model, part)
        return loss

    def _measures(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """What is logged of a step beside TRL's own figures."""
        found = {"distinct": len({r.text for r in rollouts}) / len(rollouts)}
        found["kinds"] = len({r.cluster for r in rollouts if r.success})
        found["way"] = NUMBERED.index(rollouts[0].way)  # all of a step are of one
        found |= step_measures(rollouts, list(self.scorer.recent)[-LATELY:], self.scorer.earned)
        if wished := [rollout for rollout in rollouts if rollout.made]:
            found["granted"] = sum(not r.why for r in wished) / len(wished)
            found["painting_seconds"] = self.scorer.painting_seconds
        return found

    def _replay_share(self, model, part: int) -> torch.Tensor:
        """What this process and micro-batch have to add, that all of them together make the mean over all tokens drawn.

        Gradients are summed over micro-batches and averaged over processes.
        """
        processes, parts = self.accelerator.num_processes, self.args.steps_per_generation
        own = self.drawn[self.accelerator.process_index :: processes]  # equally many for each
        rows = -(-len(own) // parts)
        share = own[part * rows : (part + 1) * rows]
        again = torch.zeros((), device=self.accelerator.device)
        if share:  # else those before have had them all, in every process
            tokens, of = (sum(len(rollout.tokens) for rollout in some) for some in (share, self.drawn))
            again = self._replay_loss(model, share) * (processes * tokens / of)
        everyone = self.accelerator.gather(again.detach()).mean().item()
        log_metric(self, "replay_loss", everyone * parts)  # which is averaged over the parts
        return again

    def _replay_loss(self, model, drawn: list[Rollout]) -> torch.Tensor:
        """Cross-entropy of the drawn completions [n, C] after their prompts [n, P], as one forward pass."""
        reader = replace(self.scorer.auditor, model=self.accelerator.unwrap_model(model))
        texts = [processors.chat(reader, auditor_prompt(rollout.way)) for rollout in drawn]
        images = [self.scorer.pictures[rollout.picture].image for rollout in drawn]
        endings = [torch.tensor(rollout.tokens) for rollout in drawn]
        return model(**processors.continued(reader, images, texts, endings)).loss


class StepLog(TrainerCallback):
    """One row a step, to a file and to whoever watches; where the rows tell of a collapse, no step comes after it.

    Every process has all rows, made of what was gathered, so all of them stop at the same step; one writes them.

    Args:
        back: how often the training has gone back so far (closed.py); each row says so, for those of before go.
    """

    def __init__(self, path: Path, p: Params, on_step: Callable[[dict], None] | None, back: int = 0):
        self.path, self.p, self.on_step, self.back, self.started = path, p, on_step, back, time.time()
        self.rows = jsonl.read(path)
        self.collapsed = False

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict | None = None, **_
    ) -> None:
        if not logs or "reward" not in logs:
            return
        row = {"step": state.global_step, "seconds": round(time.time() - self.started, 2)}
        named = (("reward/" + name, f"rewards/{name}/mean") for name in ("disagreement", "format", "coverage", "known"))
        row |= {name: logs[theirs] for name, theirs in named if theirs in logs}
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
                "kinds_lately",
                "group_spread",
                "flat_groups",
                "alike_groups",
                "repeats",
                "commonest",
                "granted",
                "painting_seconds",
                "completions/mean_length",
            )
            if k in logs
        }
        row |= {"way": NUMBERED[int(logs["way"])]} if "way" in logs else {}
        row |= {"closed": self.back} if self.back else {}
        self.rows.append(row)
        if state.is_world_process_zero:
            jsonl.append(self.path, [row])
            if self.on_step:
                self.on_step(row)
        if find_collapse(self.rows, self.p.grpo_patience):
            self.collapsed = control.should_save = control.should_training_stop = True
