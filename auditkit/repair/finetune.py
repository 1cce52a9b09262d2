"""Repair the target: fine-tune it on what the audit asked, labelled with the references' consensus (paper, Sec. 3.3).

On the unlabeled route of the paper no answer comes from a person or an oracle, but for the original examples that are
mixed in against forgetting, and of those only what the target answers right as it is, so that they teach it nothing.
On the labeled route all original examples are learnt with their labels, and one new sample beside each. Probes on
which it agreed with its references are learnt beside the findings: they show where a failure ends, and are all there is
against forgetting where nothing is labelled (beside the miniature's originals they changed nothing).

Departs from the paper in four ways:
1) a LoRA adapter on the text part instead of full weights, so the vision tower and the base model stay as they were;
   `rectify_lora_rank: 0` trains all weights of the text part, the vision tower still frozen;
2) where findings are few, they are repeated until they make up a fifth of the training set, or the rest would drown
   them out;
3) on the unlabeled route failure types take turns in what is learnt, for an audit finds a few of them most of the
   time: rare ones are repeated, of the frequent ones a part is learnt. And of the probes all agreed on an answer that
   outweighs its kind of question is thinned (docs/repair.md);
4) original examples the target gets wrong are left out: their labels alone would repair it, and what the findings are
   worth could not be told. 6,000 of them, labels and all, did as much for the miniature without any finding (with
   earlier settings).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from auditkit import specs
from auditkit.data.source import Example
from auditkit.errors import AuditError, note_step
from auditkit.models import downloads, processors
from auditkit.models.base import quiet
from auditkit.models.lora import PROJECTIONS, TEXT_PART, adapts, whole_text_part
from auditkit.models.offload import frozen_vision
from auditkit.models.trackers import logging_into, refuse_missing_trackers, reporting
from auditkit.models.trainer_internals import OwnCheckpoints
from auditkit.models.transformers import VLM
from auditkit.params import Params
from auditkit.repair.held_out import REFUSED
from auditkit.runs import jsonl
from auditkit.runs.checkpoints import last_checkpoint
from auditkit.runs.files import read_json, write_json
from auditkit.runs.progress import Progress

FINDINGS_SHARE = 1 / 5  # least share of the training set
HARMLESS = 10  # so many probes of one answer are learnt even where all to their kind of question say the same
_START_OVER = "start notebook 07 over with resume=False (on the command line: --from 07 --start-over)"
OFTENER = 5  # a finding of a rare failure type is learnt at most so many times as often as without turns


def why_not_trainable(spec: str) -> str:
    """One sentence on why a target can be audited but not repaired; "" where it can.

    >>> why_not_trainable("google/gemma-3-4b-it"), why_not_trainable("google/gemma-3-4b-it?bits=4")[:81]
    ('', 'target: audited but not repaired, for no adapter can be merged into weights of 4 ')
    """
    parsed = specs.parse(spec)
    if parsed.engine == "transformers" and _is_encoder_decoder(parsed):
        return (
            "target: audited but not repaired, for it is an encoder-decoder; to repair one name a decoder-only model."
        )
    why = {"endpoint": "its weights are its server's", "vllm": "vLLM only answers"}.get(parsed.engine, "")
    if "bits" in parsed.options:
        why = f"no adapter can be merged into weights of {parsed.options['bits']} bits"
    return why and f"target: audited but not repaired, for {why}; to repair it name its folder or hub id alone."


def _is_encoder_decoder(spec: specs.Spec) -> bool:
    """What a model's configuration says, where it is on this machine; nothing is downloaded to find out."""
    from transformers import AutoConfig

    try:
        place, revision = downloads.resolve(spec.place), spec.options.get("revision", "main")
        return AutoConfig.from_pretrained(place, revision=revision, local_files_only=True).is_encoder_decoder
    except (AuditError, OSError, ValueError, KeyError):  # whoever loads the model says what is wrong with it
        return False


def train_repair(
    target: VLM, examples: Sequence[Example], p: Params, out: Path, on_step: Callable[[dict], None] | None = None
) -> Path:
    """Fine-tune the target with TRL's SFTTrainer and a LoRA adapter; the folder of the adapter.

    With a rank of 0 all weights of the text part are trained, in 32 bits, and the folder holds a whole model without
    its processor; such a training wants a learning rate some ten times smaller. Either way `load_model(spec,
    adapter=folder)` is the repaired target; the `target` given stays as it was. What is finished is not trained again,
    and a training that was killed goes on from its last checkpoint, to the same weights.

    Args:
        target: the model as load_model gives it.
        examples: what to learn, as `build_training_set` makes it.
        p: uses rectify_steps, rectify_batch, rectify_learning_rate, rectify_lora_rank and seed.
        out: gets adapter/, history.jsonl (a row a step: step, loss, seconds) and, while training, checkpoints/.
        on_step: called with {"step", "loss", "seconds"} after each step.

    Raises AuditError for a folder that holds another training, for an encoder-decoder, and for a model in which there
    is nothing to adapt.
    """
    out = Path(out)
    adapter, purpose = out / "adapter", _purpose(target, examples, p)
    begun = out / "training.json"
    if begun.is_file() and (before := read_json(begun, advice=_START_OVER)) != purpose:
        raise AuditError(_another(out, before, purpose))
    for done in (adapter, out / REFUSED):
        if done.is_dir():
            shutil.rmtree(out / "checkpoints", ignore_errors=True)  # of a run that was killed just before it did so
            return done
    refuse_missing_trackers(p)
    processors.refuse_encoder_decoder(target)
    out.mkdir(parents=True, exist_ok=True)
    write_json(begun, purpose, indent=None)
    if not any(adapts(name) for name, _ in target.model.named_modules()):
        raise AuditError(f'"{target.name}": no text layers with {PROJECTIONS.replace("|", ", ")} to put an adapter on.')

    unfinished = out / "adapter.unfinished"
    took: dict[int, dict] = {}  # of the steps made now, not of those before a kill

    def tell(row: dict) -> None:
        took[row["step"]] = {"seconds": row["seconds"]}
        note_step(row["step"], p.rectify_steps, out / "checkpoints")
        line.at(row["step"], f", loss {row['loss']:.3f}")
        if on_step:
            on_step(row)

    with logging_into(p, out), contextlib.nullcontext() if p.rectify_lora_rank else whole_text_part(target.model):
        trainer = _trainer(target, examples, p, out / "checkpoints", tell)
        last = last_checkpoint(out / "checkpoints")
        line = Progress("training step", p.rectify_steps, int(last.rpartition("-")[2]) if last else 0)
        try:
            with frozen_vision(target.model), quiet(), line:
                trainer.train(resume_from_checkpoint=last)
                trainer.model.save_pretrained(unfinished)
        finally:  # the target as it was: training has put the adapter into its layers
            model = trainer.model.unload() if p.rectify_lora_rank else trainer.model
            target.model = model.eval().requires_grad_(True)
            vars(target.model).pop("forward", None)  # TRL's own, with a fused head
    history = out / "history.jsonl"
    history.unlink(missing_ok=True)  # of a run that was killed between this line and the last
    steps = [{"step": log["step"], "loss": log["loss"]} for log in trainer.state.log_history if "loss" in log]
    jsonl.append(history, [{**row, **took.get(row["step"], {})} for row in steps])
    os.replace(unfinished, adapter)  # last and at once: an adapter folder is a finished one
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return adapter


def _trainer(target: VLM, examples: Sequence[Example], p: Params, folder: Path, on_step: Callable[[dict], None]):
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback, TrainerCallback, TrainerState
    from trl import SFTConfig, SFTTrainer

    class AnswerTrainer(OwnCheckpoints, SFTTrainer):
        """SFTTrainer's loss, but the head sees only the last columns, where `collate` puts all answers.

        On a CPU the original scores every image and question token against the vocabulary, half of a step's time.
        """

        def compute_loss(
            self,
            model: torch.nn.Module,
            inputs: dict,
            return_outputs: bool = False,
            num_items_in_batch: torch.Tensor | None = None,
        ) -> torch.Tensor | tuple:
            labels = inputs.pop("labels")
            width = int((labels != -100).sum(1).max())
            out = model(**inputs, use_cache=False, logits_to_keep=width + 1)
            logits, wanted = out.logits[:, -width - 1 : -1], labels[:, -width:]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=-100)
            if num_items_in_batch is not None:  # the answers' tokens of a whole step, of which this may be a part
                loss = loss * ((labels != -100).sum() / num_items_in_batch)
            return (loss, out) if return_outputs else loss

        def load_weights(self, checkpoint: str) -> bool:
            """A whole model is saved under its family's published names, which Trainer would not find in the model."""
            if not p.rectify_lora_rank:
                saved = type(target.model).from_pretrained(checkpoint, dtype=torch.float32)
                target.model.load_state_dict(saved.state_dict())
            return not p.rectify_lora_rank

    class Tell(TrainerCallback):
        started = time.perf_counter()

        def on_log(self, args: object, state: TrainerState, control: object, logs: dict, **kwargs) -> None:
            if "loss" in logs:
                seconds = round(time.perf_counter() - self.started, 2)
                on_step({"step": state.global_step, "loss": logs["loss"], "seconds": seconds})

    on_gpu = target.model.device.type == "cuda"
    config = SFTConfig(
        output_dir=str(folder),
        max_steps=p.rectify_steps,
        per_device_train_batch_size=p.rectify_micro_batch or p.rectify_batch,
        gradient_accumulation_steps=p.rectify_batch // (p.rectify_micro_batch or p.rectify_batch),
        learning_rate=p.rectify_learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=p.rectify_steps // 20,
        max_grad_norm=1.0,
        seed=p.seed,
        save_steps=p.rectify_steps // 3 + 1,
        save_total_limit=1,
        logging_steps=1,
        use_cpu=target.model.device.type == "cpu",
        bf16=on_gpu,
        activation_checkpointing=on_gpu,
        max_length=None,  # truncation would cut image tokens
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=False,  # `collate` puts a batch where the model is
        disable_tqdm=True,
        **reporting(p, folder.parent),
    )
    rank = p.rectify_lora_rank
    trainer = AnswerTrainer(
        model=target.model,
        args=config,
        # row numbers only: pictures that go through Arrow are encoded and decoded again at every step
        train_dataset=Dataset.from_dict({"row": list(range(len(examples)))}),
        data_collator=lambda rows: collate(target, [examples[row["row"]] for row in rows]),
        processing_class=target.processor,
        peft_config=LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TEXT_PART, task_type="CAUSAL_LM")
        if rank
        else None,
        callbacks=[Tell()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def collate(target: VLM, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """A left-padded training batch in which only the answers, and the token that ends them, are learned.

    The prompt is exactly what the model is asked at inference, tokenized on its own, so that the answer's
    first token is predicted from the same state as when it is generated. All answers end in the last column.

    Returns what the model's processor returns, and labels [batch, tokens], -100 but on the answers.
    """
    texts = [processors.chat(target, example.question) for example in examples]
    answers = [processors.ending(target, example.question, example.answer) for example in examples]
    ids = target.processor.tokenizer(answers, add_special_tokens=False)["input_ids"]
    return processors.continued(target, [example.image for example in examples], texts, list(map(torch.tensor, ids)))


def _another(out: Path, before: dict, now: dict) -> str:
    """One sentence on a folder that holds another training: what differs, and what to do."""
    settings = [
        f"{name} {before.get(name)!r} then, {value!r} now"
        for name, value in now.items()
        if before.get(name) != value and name not in ("content", "examples")
    ]
    why = ", ".join(settings) or "the findings, or what a person said of them in notebook 06, have changed since"
    return f"{out} holds a training on other examples or settings ({why}): {_START_OVER}, or choose another folder."


def _purpose(target: VLM, examples: Sequence[Example], p: Params) -> dict:
    """What a training folder is for; a folder of another purpose is never continued."""
    content = "\n".join(f"{e.key}\t{e.question}\t{e.answer}" for e in examples)
    settings = {key: getattr(p, key) for key in vars(p) if key.startswith("rectify_") and key != "rectify_micro_batch"}
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    return {"target": target.name, "examples": len(examples), "content": digest, "seed": p.seed, **settings}
