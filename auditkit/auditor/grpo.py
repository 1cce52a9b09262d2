"""Train the auditor with GRPO to write questions on which the target departs from its references (paper, Sec. 3.2).

The trainer is TRL's own. What is the kit's stands here in sight: three rewards, each logged by name, and the replay.
It departs from the paper in six ways:

1) coverage. The paper's binary reward alone lets the auditor collapse to one question that often works. The `coverage`
   reward pays more for successes in a rare cluster, and the *replay* adds a supervised loss on the auditor's own past
   successes, drawn evenly over clusters of the questions' text (TF-IDF of words, k-means on what the untrained
   auditor writes): these know nothing of the images, the target or its gaps.
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
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import LoraConfig
from transformers import PrinterCallback, set_seed
from trl import GRPOConfig

from auditkit.auditor.closed import answer_collapse, closed_kinds, forget_after, has_ended
from auditkit.auditor.clusters import KINDS_FROM, TEXTS_EACH, TextClusters
from auditkit.auditor.grpo_setup import grpo_config, refuse_uneven, training_rows
from auditkit.auditor.rewards import Rollout, Scorer, kept_text, reward_functions
from auditkit.auditor.rollouts import LEFT_FILE
from auditkit.auditor.trainer import AuditorTrainer, StepLog
from auditkit.auditor.trial import take_adapter_off, trial_step
from auditkit.auditor.write import refuse_nonsense, write_texts
from auditkit.consensus.llm_judge import LLMJudge
from auditkit.counterfactual.store import ImageStore, pipeline_loaders
from auditkit.data.load import load_images
from auditkit.data.source import Picture
from auditkit.errors import AuditError, note_step
from auditkit.models import processors
from auditkit.models.answers import AnswerBook
from auditkit.models.base import Writer
from auditkit.models.device import choose_device
from auditkit.models.load import model_loader
from auditkit.models.lora import TEXT_PART
from auditkit.models.offload import frozen_vision
from auditkit.models.trackers import logging_into, refuse_missing_trackers
from auditkit.models.transformers import VLM
from auditkit.models.vllm import MISSING
from auditkit.params import Params, load_params, parse_setting
from auditkit.runs import jsonl
from auditkit.runs.checkpoints import auditor_checkpoints as auditor_checkpoints  # for notebook 04
from auditkit.runs.checkpoints import last_checkpoint
from auditkit.runs.files import read_json, write_json
from auditkit.runs.folder import claimed, open_stage, run_folder, shown_path
from auditkit.runs.probe import Probe
from auditkit.runs.progress import Progress
from auditkit.text import counted

STAGE = "04_auditor"
_BEGIN_ANEW = "start notebook 04 over with resume=False (on the command line: --from 04 --start-over)"
SHARED = {  # files that several processes add to -> what makes two rows the same
    "answers": ("model", "picture", "question"),
    "judged": ("judge", "question", "a", "b"),
}


def train_auditor(
    auditor: VLM,
    target: Writer,
    references: Sequence[Writer],
    pictures: Sequence[Picture],
    p: Params,
    out: Path,
    on_step: Callable[[dict], None] | None = None,
) -> list[dict]:
    """Train the auditor; return its history, one row a step.

    Writes to `out`: checkpoint-N (LoRA adapters, `grpo_checkpoints` of them, the last one trained to the end),
    rollouts.jsonl (every completion with all answers), answers.jsonl, history.jsonl. A run that was killed goes on
    from its last checkpoint and asks no model a question it has answered. A training that is complete is not repeated.
    One that has collapsed goes back, with the kind of text closed to which it did, or ends early (auditor/closed.py).

    Raises AuditError when there are too few pictures for one step, when a step cannot be dealt out evenly, when the
    untrained auditor writes no questions, or when the references never agree; and, by one small step taken before all
    others (auditor/trial.py), when it would learn from what is not the model's own.
    """
    if p.grpo_rollouts != "transformers" and not importlib.util.find_spec("vllm"):
        raise AuditError(f"grpo_rollouts: {p.grpo_rollouts} {MISSING}, or write transformers.")
    refuse_missing_trackers(p)
    if len(pictures) < p.grpo_images:
        raise AuditError(
            f"train_images: {len(pictures)} pictures are fewer than grpo_images ({p.grpo_images}), so GRPO would train "
            "zero steps; raise the first or lower the second."
        )
    here = PartialState(cpu=auditor.model.device.type == "cpu")
    refuse_uneven(p, here.num_processes)
    processors.refuse_encoder_decoder(auditor)
    out.mkdir(parents=True, exist_ok=True)
    own_forward = None  # not known before a trial step is taken
    while (last := _where_to_begin(out, p, here)) is not None:
        scorer = _scorer(auditor, target, references, pictures, p, out, here)
        if own_forward is None:
            own_forward = trial_step(auditor, pictures, p, here.num_processes).own_forward
        _train_on(auditor, scorer, pictures, p, out, here, last, own_forward, on_step)
    return jsonl.read(out / "history.jsonl")


def _where_to_begin(out: Path, p: Params, here: PartialState) -> str | None:
    """The checkpoint from which the training goes on, "" for its start; None where it is complete, the stage is
    finished, or the training has ended early.

    The first process tidies up: what a kill has left, and what is to follow from a collapse.
    """
    here.wait_for_everyone()  # all have written what they had
    if here.is_main_process:
        _collect(out)
        last_checkpoint(out)  # a torn one is set aside
        ended = (out / "DONE").exists()
        if not ended:
            answer_collapse(out, p)
            ended = has_ended(out, p.grpo_patience)
        last = last_checkpoint(out)
        done = int(last.rsplit("-", 1)[1]) if last else 0
        if not ended:
            if (made := len(jsonl.read(out / "history.jsonl"))) > done:
                print(goes_on_in_words(made, done), flush=True)
            forget_after(out, done)
        begin = None if ended or done >= p.grpo_steps else last or ""
    else:
        begin = None
    (begin,) = broadcast_object_list([begin])
    return begin


def _train_on(
    auditor: VLM,
    scorer: Scorer,
    pictures: Sequence[Picture],
    p: Params,
    out: Path,
    here: PartialState,
    last: str,
    own_forward: bool,
    on_step: Callable[[dict], None] | None,
) -> None:
    """Train from a checkpoint, or from the start (""), to the end or to a collapse, after which it is as before."""

    def tell(row: dict) -> None:
        note_step(row["step"], p.grpo_steps, out)
        line.at(row["step"], f", {row['reward/disagreement']:.0%} success")
        if on_step:
            on_step(row)

    back = len(scorer.closed)  # each time it closed one
    if back and not last:  # as in a process of its own
        set_seed(p.seed)
    config = grpo_config(p, out, auditor.model.device.type, auditor.model.dtype, here.num_processes)
    log = StepLog(out / "history.jsonl", p, tell, back)
    done = int(last.rsplit("-", 1)[1]) if last else 0
    with logging_into(p, out), Progress("training step", p.grpo_steps, done) as line:
        trainer = _trainer(auditor, scorer, pictures, p, config, log, own_forward)
        with frozen_vision(auditor.model):
            trainer.train(resume_from_checkpoint=last or None)
    if log.collapsed:
        take_adapter_off(auditor, trainer)


def goes_on_in_words(made: int, done: int) -> str:
    """From where a training goes on that was stopped after `made` steps and whose last checkpoint is of step `done`."""
    if not done:
        return f"{counted(made, 'step was', 'steps were')} made, but no checkpoint yet: it starts again with step 1."
    return f"{counted(made, 'step was', 'steps were')} made; it goes on after step {done}, its last checkpoint."


def _scorer(
    auditor: VLM,
    target: Writer,
    references: Sequence[Writer],
    pictures: Sequence[Picture],
    p: Params,
    out: Path,
    here: PartialState,
) -> Scorer:
    """What scores the completions, with all that it remembered before the last checkpoint, in each process its own."""
    with here.main_process_first():  # which asks the untrained auditor; the others find it done
        clusters = _text_clusters(auditor, pictures, p, out)
        book, store = AnswerBook(out / "answers.jsonl"), ImageStore(pipeline_loaders(p), p)
        shown = {picture.key: picture for picture in pictures}
        scorer = Scorer(target, references, shown, clusters, book, store, p, out / "rollouts.jsonl")
        scorer.closed = closed_kinds(out)
        scorer.know([Rollout(**row) for row in jsonl.each(out / LEFT_FILE)])
        for row in jsonl.read(out / "rollouts.jsonl"):
            rollout = Rollout(**row)
            scorer.remember([rollout])
            scorer.count([rollout])
    here.wait_for_everyone()  # all have read before anyone writes
    if not here.is_main_process:  # one file, one writer; collected at the end, or at the next start
        book.path = out / f"answers.{here.process_index}.jsonl"
        judge = scorer.same.decide
        if isinstance(judge, LLMJudge) and judge.path:
            judge.path = out / f"judged.{here.process_index}.jsonl"
    return scorer


def _trainer(
    auditor: VLM,
    scorer: Scorer,
    pictures: Sequence[Picture],
    p: Params,
    config: GRPOConfig,
    log: StepLog,
    own_forward: bool,
) -> AuditorTrainer:
    """The trainer, without TRL's own printing; the scorer gets to know the auditor with its adapter."""
    trainer = AuditorTrainer(
        model=auditor.model,
        processing_class=auditor.processor,
        args=config,
        reward_funcs=reward_functions(scorer),
        train_dataset=training_rows(pictures, p.ways, p.grpo_images, auditor.max_pixels),
        peft_config=LoraConfig(
            r=p.grpo_lora_rank, lora_alpha=2 * p.grpo_lora_rank, target_modules=TEXT_PART, task_type="CAUSAL_LM"
        ),
        callbacks=[log],
        reader=auditor,
        pictures=pictures,
        own_forward=own_forward,
        scorer=scorer,
        replay_weight=p.replay_weight,
    )
    scorer.auditor = VLM("auditor", trainer.model, auditor.processor, p.batch_size, auditor.max_pixels)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _text_clusters(auditor: VLM, pictures: Sequence[Picture], p: Params, out: Path) -> TextClusters:
    """Clusters of text, from what the untrained auditor writes: several texts about each of some pictures, for an
    image is read once. They are written once, then read.

    Raises AuditError when none of what it writes can be used.
    """
    path = out / "untrained.json"
    if not path.exists():
        some = [picture for picture in pictures[:KINDS_FROM] for _ in range(TEXTS_EACH)]
        ways = [p.ways[i % len(p.ways)] for i in range(len(some))]
        texts = write_texts(auditor, some, ways, p.grpo_temperature, p.max_question_tokens, p.seed)
        kept = [kept_text(text, way) for text, way in zip(texts, ways, strict=True)]
        if not any(kept):
            refuse_nonsense(auditor.name, [Probe("", "", None, text) for text in texts])
        write_json(path, [text for text in kept if text], indent=None)
    return TextClusters(read_json(path, list, _BEGIN_ANEW, of=str), p.replay_clusters, p.seed)


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
        prog="accelerate launch -m auditkit.auditor.grpo", description=(main.__doc__ or "").split("\n")[0]
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
        refuse_uneven(p, here.num_processes)
        pictures, load = load_images(p.images).pictures("train", p.train_images, p.seed), model_loader(p)
        auditor, target, *references = load(p.auditor, turns=False), *map(load, (p.target, *p.references))
        assert isinstance(auditor, VLM)  # no other text is taken for an auditor
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
