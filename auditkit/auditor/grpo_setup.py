"""What a parameter file says of the training, as TRL wants it: its configuration and its data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from trl import GRPOConfig

from auditkit.auditor.write import auditor_prompt
from auditkit.data.source import Picture
from auditkit.errors import AuditError
from auditkit.models.offload import shrunk
from auditkit.models.trackers import reporting
from auditkit.params import Params


def grpo_config(p: Params, out: Path, device: str, dtype: torch.dtype, processes: int = 1) -> GRPOConfig:
    """One generation and one optimiser step a step, over the questions of all processes, in micro-batches of theirs."""
    rows = p.grpo_images * p.group_size // processes
    micro_batch = p.grpo_micro_batch or rows
    schedule: dict = {"lr_scheduler_type": "cosine"}
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
        warmup_steps=warmup_steps(p),
        **schedule,
        beta=p.grpo_beta,
        scale_rewards="batch",  # one deviation for all groups, so that a group with a single success is not blown up
        # of the rewards in their order; what is known is taken off the first (reward_functions)
        reward_weights=[p.disagreement_weight, p.format_weight, p.coverage_weight]
        + ([p.disagreement_weight] if p.known_discount else []),
        logging_steps=1,
        save_strategy="steps",
        save_steps=max(1, p.grpo_steps // p.grpo_checkpoints),
        **reporting(p, out),
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_vllm=p.grpo_rollouts != "transformers",
        vllm_mode="server" if p.grpo_rollouts == "vllm_server" else "colocate",  # a server: trl vllm-serve --model ID
        vllm_enable_sleep_mode=p.grpo_rollouts == "vllm_colocate",  # its memory is the answering models' meanwhile
        vllm_max_model_length=8192,  # a picture of some thousand tokens and the question; a model's own is far longer
    )


def warmup_steps(p: Params) -> int:
    """Steps over which the learning rate rises: at least one, unless none are wanted."""
    return max(1, int(p.grpo_warmup * p.grpo_steps)) if p.grpo_warmup else 0


def refuse_uneven(p: Params, processes: int) -> None:
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


def training_rows(pictures: Sequence[Picture], ways: Sequence[str], each: int, max_pixels: int | None) -> Dataset:
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
