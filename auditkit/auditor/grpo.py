"""Train the auditor with GRPO to write questions on which the target departs from its references (paper, Sec. 3.2).

The trainer is TRL's own. What is the kit's stands here in sight: three rewards, each logged by name, and the replay.
It departs from the paper in six ways:

1) coverage. The paper's binary reward alone lets the auditor collapse to one question that often works. The `coverage`
   reward pays more for successes of a rare kind, and the *replay* adds a supervised loss on the auditor's own past
   successes, drawn evenly over kinds of question. A kind is a cluster of the questions' text (TF-IDF of words, k-means
   on what the untrained auditor writes): it knows nothing of the images, the target or its gaps.
2) the reward has a quorum of its own, by default all references, while an audit may count a majority: what two of three
   references get wrong alike would otherwise be learnt like any gap;
3) a question earns nothing if one of its tokens is next to impossible to the untrained auditor (`rarest_token`):
   otherwise what is no question at all is learnt, wherever references happen to say the same to it;
4) a well-formed question earns 1 by itself, and advantages are divided by the deviation of the whole step's rewards,
   not of each group's;
5) the trained weights are a LoRA adapter, whose checkpoints are small and resume exactly;
6) a step is of one way, so its texts are compared with their like.

On several GPUs or machines, for the run that notebook 04 then finds trained:

    accelerate launch --num_processes 8 -m auditkit.auditor.grpo params/X.yaml --set grpo_micro_batch=4

Every process generates, scores and learns from its own share of each step's questions; what they wrote is gathered, so
all of them have the same memory for novelty and replay, and the first alone writes the files.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import random
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from auditkit.auditor.clusters import TextClusters
from auditkit.auditor.collapse import LATELY, collapse_reason, step_measures
from auditkit.auditor.rewards import Rollout, Scorer, kept_text, reward_functions
from auditkit.auditor.write import auditor_prompt, refuse_nonsense, write_texts
from auditkit.counterfactual.store import ImageStore, pipeline_loaders
from auditkit.data.load import load_images
from auditkit.data.source import Picture
from auditkit.errors import AuditError
from auditkit.models import processors
from auditkit.models.answers import AnswerBook
from auditkit.models.device import choose_device
from auditkit.models.load import model_loader
from auditkit.models.lora import TEXT_PART
from auditkit.models.offload import frozen_vision, shrunk
from auditkit.models.trainer_internals import CompletionInputs, log_metric, micro_batch
from auditkit.models.transformers import VLM
from auditkit.models.vllm import MISSING
from auditkit.params import WAYS, Params, load_params, parse_setting
from auditkit.runs import jsonl
from auditkit.runs.folder import claimed, last_checkpoint, open_stage, run_folder, shown_path
from auditkit.runs.probe import Probe

STAGE = "04_auditor"
WAYS = list(WAYS)  # a trainer logs numbers, so a way is one
SHARED = {  # files that several processes add to -> what makes two rows the same
    "answers": ("model", "picture", "question"),
    "judged": ("judge", "question", "a", "b"),
}


class AuditorTrainer(CompletionInputs, GRPOTrainer):
    """TRL's GRPOTrainer, its loss with the cross-entropy of past successes added, evenly over kinds of question."""

    def __init__(self, *args, scorer: Scorer, replay_weight: float, **kwargs):
        super().__init__(*args, **kwargs)
        self.scorer, self.replay_weight, self.drawn = scorer, replay_weight, []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
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
        found["way"] = WAYS.index(rollouts[0].way)  # all of a step are of one
        found |= step_measures(rollouts, list(self.scorer.recent)[-LATELY:])
        if wished := [rollout for rollout in rollouts if rollout.made]:
            found["granted"] = sum(not r.why for r in wished) / len(wished)
            found["painting_seconds"] = self.scorer.painting_seconds
        return found

    def completion_inputs(self, inputs: dict, completion: int) -> dict:
        """What two families' processors return, put right.

        PaliGemma's completions may see only what came before: tokens of type 1, where TRL has 0, with which they see
        what they are to predict. LLaVA-OneVision's count of images is not needed for one image a prompt.
        """
        if processors.is_paligemma(self.processing_class):
            inputs["token_type_ids"] = inputs["token_type_ids"].clone()
            inputs["token_type_ids"][:, -completion:] = 1
        for name in ("labels", "batch_num_images"):
            inputs.pop(name, None)
        return inputs

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


class History(TrainerCallback):
    """One row a step, to a file and to whoever watches; where the rows tell of a collapse, no step comes after it.

    Every process has all rows, made of what was gathered, so all of them stop at the same step; one writes them.
    """

    def __init__(self, path: Path, p: Params, on_step: Callable[[dict], None] | None):
        self.path, self.p, self.on_step, self.started = path, p, on_step, time.time()
        self.rows = jsonl.read(path)

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
        row |= {"way": WAYS[int(logs["way"])]} if "way" in logs else {}
        self.rows.append(row)
        if state.is_world_process_zero:
            jsonl.append(self.path, [row])
            if self.on_step:
                self.on_step(row)
        if _collapsed(self.rows, self.p):
            control.should_save = control.should_training_stop = True


def train_auditor(
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
    from its last checkpoint and asks no model a question it has answered. A training that is complete is not repeated.
    One that has collapsed (auditor/collapse.py) is stopped, with a last checkpoint, and not gone on with.

    Raises AuditError when there are too few pictures for one step, when a step cannot be dealt out evenly, when the
    untrained auditor writes no questions, when the references never agree, or when the auditor has collapsed.
    """
    if p.grpo_rollouts != "transformers" and not importlib.util.find_spec("vllm"):
        raise AuditError(f"grpo_rollouts: {p.grpo_rollouts} {MISSING}, or write transformers.")
    if len(pictures) < p.grpo_images:
        raise AuditError(
            f"train_images: {len(pictures)} pictures are fewer than grpo_images ({p.grpo_images}), so GRPO would train "
            "zero steps; raise the first or lower the second."
        )
    here = PartialState(cpu=auditor.model.device.type == "cpu")
    _refuse_uneven(p, here.num_processes)
    out.mkdir(parents=True, exist_ok=True)
    if why := _collapsed(jsonl.read(out / "history.jsonl"), p):
        raise AuditError(why)
    here.wait_for_everyone()  # all have read it before the first forgets what a kill has left
    with here.main_process_first():  # which tidies up what a kill has left; the others find it done
        last = last_checkpoint(out)
        done = int(last.rsplit("-", 1)[1]) if last else 0
        _forget_after(out, done)
        _collect(out)
        kinds = _kinds(auditor, pictures, p, out)
        book, album = AnswerBook(out / "answers.jsonl"), ImageStore(pipeline_loaders(p), p)
        shown = {picture.key: picture for picture in pictures}
        scorer = Scorer(target, references, shown, kinds, book, album, p, out / "rollouts.jsonl")
        for row in jsonl.read(out / "rollouts.jsonl"):
            rollout = Rollout(**row)
            scorer.remember([rollout])
            scorer.count([rollout])
    here.wait_for_everyone()  # all have read before anyone writes
    if not here.is_main_process:  # one file, one writer; collected at the end, or at the next start
        book.path = out / f"answers.{here.process_index}.jsonl"
        if getattr(scorer.same.decide, "path", None):  # of a model that judges
            scorer.same.decide.path = out / f"judged.{here.process_index}.jsonl"
    if done < p.grpo_steps:
        trainer = AuditorTrainer(
            model=auditor.model,
            processing_class=auditor.processor,
            args=_config(p, out, auditor.model.device.type, auditor.model.dtype, here.num_processes),
            reward_funcs=reward_functions(scorer),
            train_dataset=_dataset(pictures, p.ways, p.grpo_images, auditor.max_pixels),
            peft_config=LoraConfig(
                r=p.grpo_lora_rank, lora_alpha=2 * p.grpo_lora_rank, target_modules=TEXT_PART, task_type="CAUSAL_LM"
            ),
            callbacks=[History(out / "history.jsonl", p, on_step)],
            scorer=scorer,
            replay_weight=p.replay_weight,
        )
        scorer.auditor = VLM("auditor", trainer.model, auditor.processor, p.batch_size, auditor.max_pixels)
        trainer.remove_callback(
            type(
                next(
                    c
                    for c in trainer.callback_handler.callbacks
                    if "Progress" in type(c).__name__ or "Printer" in type(c).__name__
                )
            )
        )
        with frozen_vision(auditor.model):
            trainer.train(resume_from_checkpoint=last)
    here.wait_for_everyone()
    if here.is_main_process:
        _collect(out)
    history = jsonl.read(out / "history.jsonl")
    if why := _collapsed(history, p):
        raise AuditError(why)
    return history


def _collapsed(history: Sequence[dict], p: Params) -> str:
    """Why the training is not gone on with, "" where it is."""
    return collapse_reason(
        history,
        patience=p.grpo_patience,
        replay_weight=p.replay_weight,
        coverage_weight=p.coverage_weight,
        learning_rate=p.grpo_learning_rate,
    )


def auditor_checkpoints(out: Path) -> dict[str, Path]:
    """The kept checkpoints, first to last: "step 60" -> folder.

    Raises AuditError when there is none.
    """
    folders = sorted(out.glob("checkpoint-*"), key=lambda folder: int(folder.name.rsplit("-", 1)[1]))
    if not folders:
        raise AuditError(f"{out}: no checkpoint of a trained auditor; run notebook 04 first")
    return {f"step {folder.name.rsplit('-', 1)[1]}": folder for folder in folders}


def _config(p: Params, out: Path, device: str, dtype: torch.dtype, processes: int = 1) -> GRPOConfig:
    """One generation and one optimiser step a step, over the questions of all processes, in micro-batches of theirs."""
    rows = p.grpo_images * p.group_size // processes
    micro_batch = p.grpo_micro_batch or rows
    schedule = {"lr_scheduler_type": "cosine"}
    if p.grpo_last_learning_rate:
        schedule = {"lr_scheduler_type": "cosine_with_min_lr"}
        schedule["lr_scheduler_kwargs"] = {"min_lr": p.grpo_last_learning_rate}
    return GRPOConfig(
        output_dir=str(out),
        seed=p.seed,
        use_cpu=device == "cpu",
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        activation_checkpointing=device == "cuda",
        ddp_find_unused_parameters=False,  # every trained weight is used in each pass, of which replay makes a second
        ddp_broadcast_buffers=False,  # nothing changes them, and writing to them between the passes breaks the first
        max_steps=p.grpo_steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=rows // micro_batch,
        steps_per_generation=rows // micro_batch,
        num_generations=p.group_size,
        shuffle_dataset=False,  # pictures were drawn at random, and the ways take turns over them
        max_completion_length=p.max_question_tokens,
        temperature=p.grpo_temperature,
        learning_rate=p.grpo_learning_rate,
        warmup_steps=_warmup(p),
        **schedule,
        beta=p.grpo_beta,
        scale_rewards="batch",  # one deviation for all groups, so that a group with a single success is not blown up
        reward_weights=[p.disagreement_weight, p.format_weight, p.coverage_weight],
        logging_steps=1,
        save_strategy="steps",
        save_steps=max(1, p.grpo_steps // p.grpo_checkpoints),
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_vllm=p.grpo_rollouts != "transformers",
        vllm_mode="server" if p.grpo_rollouts == "vllm_server" else "colocate",  # a server: trl vllm-serve --model ID
        vllm_enable_sleep_mode=p.grpo_rollouts == "vllm_colocate",  # its memory is the answering models' meanwhile
        vllm_max_model_length=8192,  # a picture of some thousand tokens and the question; a model's own is far longer
    )


def _warmup(p: Params) -> int:
    """Steps over which the learning rate rises: at least one, unless none are wanted."""
    return max(1, int(p.grpo_warmup * p.grpo_steps)) if p.grpo_warmup else 0


def _refuse_uneven(p: Params, processes: int) -> None:
    """Raise AuditError where a step's questions cannot be dealt out evenly to processes and micro-batches."""
    questions = p.grpo_images * p.group_size
    if questions % processes:
        raise AuditError(
            f"grpo_images x group_size: a step's {questions} questions cannot be dealt out evenly to {processes} "
            f"processes; make them a multiple of {processes}."
        )
    rows = questions // processes
    if p.grpo_micro_batch and rows % p.grpo_micro_batch:
        raise AuditError(
            f"grpo_micro_batch: {p.grpo_micro_batch} does not divide the {rows} questions that each of {processes} "
            "processes has of a step (grpo_images x group_size / processes)."
        )


def _dataset(pictures: Sequence[Picture], ways: Sequence[str], each: int, max_pixels: int | None) -> Dataset:
    """One row a picture, in the conversational form TRL expects, its key and its way riding along for the rewards.

    The ways take turns step by step, of `each` pictures, so that a step's texts are of one kind: short questions are
    not padded to the length of captions, and are not compared with them. The image itself is read when its row is:
    thousands of photographs would be encoded anew and held all at once.
    """
    there = {q.key: q for q in pictures}
    way = [ways[i // each % len(ways)] for i in range(len(there))]
    prompts = [[{"role": "user", "content": auditor_prompt(one)}] for one in way]
    rows = Dataset.from_dict({"prompt": prompts, "picture": list(there), "way": way})

    def seen(batch: dict) -> dict:
        return {**batch, "image": [shrunk(there[key].image, max_pixels) for key in batch["picture"]]}

    return rows.with_transform(seen)


def _kinds(auditor: VLM, pictures: Sequence[Picture], p: Params, out: Path) -> TextClusters:
    """Kinds of text, from what the untrained auditor writes about some of the pictures; written once, then read.

    Raises AuditError when none of what it writes can be used.
    """
    path = out / "untrained.json"
    if not path.exists():
        some = pictures[:1000]
        ways = [p.ways[i % len(p.ways)] for i in range(len(some))]
        texts = write_texts(auditor, some, ways, p.grpo_temperature, p.max_question_tokens, p.seed)
        kept = [kept_text(text, way) for text, way in zip(texts, ways, strict=True)]
        if not any(kept):
            refuse_nonsense(auditor.name, [Probe("", "", None, text) for text in texts])
        path.write_text(json.dumps([text for text in kept if text]))
    return TextClusters(json.loads(path.read_text()), p.replay_clusters, p.seed)


def _forget_after(out: Path, step: int) -> None:
    """Drop rows of steps that a killed run made after its last checkpoint: they are made again, the same."""
    for name, last in (("rollouts.jsonl", step - 1), ("history.jsonl", step)):
        rows = jsonl.read(out / name)
        kept = [row for row in rows if row["step"] <= last]
        if len(kept) < len(rows):
            jsonl.replace(out / name, kept)


def _collect(out: Path) -> None:
    """Bring what other processes filed into the first one's files; what two of them asked at once is there once."""
    for name, columns in SHARED.items():
        for path in sorted(out.glob(f"{name}.*.jsonl")):
            known = {tuple(row[column] for column in columns) for row in jsonl.read(out / f"{name}.jsonl")}
            new = [row for row in jsonl.read(path) if tuple(row[column] for column in columns) not in known]
            jsonl.append(out / f"{name}.jsonl", new)
            path.unlink()


def main(arguments: list[str] | None = None) -> int:
    """Train the auditor of a run from the command line, alone or as one process of `accelerate launch`.

    Exit codes as in cli.py. Notebook 04 then shows the training and finishes the stage.
    """
    parser = argparse.ArgumentParser(
        prog="accelerate launch -m auditkit.auditor.grpo", description=main.__doc__.split("\n")[0]
    )
    parser.add_argument("params", metavar="PARAMS.yaml", help="the parameter file, such as params/demo.yaml")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="settings", help="replace one value of the file"
    )
    parser.add_argument("--start-over", action="store_true", help="empty the stage's folder first")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the trainers' own, about their next version
    alike = True  # so far, what goes wrong does so in every process, and the first one's word is enough
    try:
        p = load_params(options.params, **dict(parse_setting(text) for text in options.settings))
        here = PartialState(cpu=not choose_device(p.device).startswith("cuda"))
        _refuse_uneven(p, here.num_processes)
        pictures, load = load_images(p.images).pictures("train", p.train_images, p.seed), model_loader(p)
        auditor, target, *references = load(p.auditor, turns=False), *map(load, (p.target, *p.references))
        alike, run = False, None
        with claimed(p) if here.is_main_process else contextlib.nullcontext():
            if here.is_main_process:
                run = open_stage(p, STAGE, resume=not options.start_over)
                count = f"{here.num_processes} process(es), {p.grpo_steps} steps"
                print(f"{p.run_name}: {count} -> {shown_path(run.folder)}", flush=True)
            here.wait_for_everyone()
            history = train_auditor(auditor, target, references, pictures, p, run_folder(p) / STAGE, on_step=_say)
    except AuditError as error:
        if options.debug:
            raise
        if not alike or os.environ.get("RANK", "0") == "0":
            print(f"auditkit: {error}", file=sys.stderr, flush=True)
        return 2
    if run:
        run.count()  # for the seconds in the manifest; notebook 04 counts the rest
        print(f"{p.run_name}: trained for {history[-1]['step']} steps; auditkit run {p.params_file} goes on from here.")
    here.destroy_process_group()
    return 0


def _say(row: dict) -> None:
    print(f"step {row['step']}  success {row['reward/disagreement']:.0%}  {row['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
