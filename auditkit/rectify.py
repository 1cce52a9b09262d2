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
   outweighs its kind of question is thinned (README, Choosing what to ask);
4) original examples the target gets wrong are left out: their labels alone would repair it, and what the findings are
   worth could not be told. 6,000 of them, labels and all, did as much for the miniature without any finding (with
   earlier settings).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from auditkit import lines, naming, processors, runs, specs, vlm
from auditkit.disagreement import normalise, same
from auditkit.errors import AuditError
from auditkit.images import Example, Picture
from auditkit.memory import frozen_vision

FINDINGS_SHARE = 1 / 5  # least share of the training set
HARMLESS = 10  # so many probes of one answer are learnt even where all to their kind of question say the same
OFTENER = 5  # a finding of a rare failure type is learnt at most so many times as often as without turns
PROJECTIONS = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
# peft's "all-linear" and bare names would match the vision tower too, whose projections have the same names
TEXT_PART = rf".*(?:language_model|text_model)\.(?!.*vision).*\.(?:{PROJECTIONS})"
WHOLE_TEXT_PART = r".*(?:language_model|text_model)\.(?!.*vision).*|lm_head\..*"


def why_not(spec: str) -> str:
    """One sentence on why a target can be audited but not repaired; "" where it can.

    >>> why_not("google/gemma-3-4b-it"), why_not("google/gemma-3-4b-it?bits=4")[:81]
    ('', 'target: audited but not repaired, for no adapter can be merged into weights of 4 ')
    """
    parsed = specs.parse(spec)
    why = {"endpoint": "its weights are its server's", "vllm": "vLLM only answers"}.get(parsed.engine, "")
    if "bits" in parsed.options:
        why = f"no adapter can be merged into weights of {parsed.options['bits']} bits"
    return why and f"target: audited but not repaired, for {why}; to repair it name its folder or hub id alone."


def known(target: vlm.VLM, originals: Sequence[Example], book: vlm.AnswerBook, p) -> list[Example]:
    """The original examples that the target answers right, in their order; `p.same` says what is right.

    Args:
        target: the model before its repair.
        originals: labelled examples.
        book: holds the answers, so that nothing is asked again.
        p: uses max_answer_tokens and same.
    """
    pictures = [Picture(example.key, example.held) for example in originals]
    said = book.ask(target, pictures, [example.question for example in originals], p.max_answer_tokens)
    alike = same(p, book.path.parent)
    alike.prepare((e.question, answer, e.answer) for e, answer in zip(originals, said, strict=True))
    return [e for e, answer in zip(originals, said, strict=True) if alike(answer, e.answer, e.question)]


def pairs(
    scored: Sequence[dict], labelled: Sequence[Example], p, picture: Callable[[str], Picture]
) -> list[list[Example]]:
    """What is to be learnt: the findings of each failure type, with the consensus for their answer.

    The types are found anew, for near-duplicates are gone here and earlier rounds and a person may have their part. A
    control in their place, probes or labels at random, is all of one type.

    Args:
        scored: records of an audit (audit.score).
        labelled: original examples, whether the target knows them or not; the control "labels" draws from these.
        p: uses rectify_on, rectify_pairs, failure_types, types_by and seed.
        picture: a picture's key -> the picture, such as a source's `picture`.
    """
    if p.rectify_on == "labels":
        types = [list(labelled)]
    elif p.rectify_on == "consensus":
        types = [_labelled(scored, ("ok", "agrees"), picture)]
    else:
        findings = [row for row in scored if row["gate"] == "ok"]
        groups = naming.groups(findings, p.failure_types, p.types_by) if findings else []
        types = [_labelled(group, ("ok",), picture) for group in groups]
    for of_type in types:
        random.Random(f"{p.seed}/pairs").shuffle(of_type)
    if p.rectify_pairs:
        kept = {example.key for example in evenly(types, p.rectify_pairs)}
        types = [[example for example in of_type if example.key in kept] for of_type in types]
    return [of_type for of_type in types if of_type]


def evenly(types: Sequence[Sequence[Example]], n: int, times: int = 1) -> list[Example]:
    """n examples, of each type in turn, none of them more often than `times`.

    >>> evenly(["abcdef", "x"], 5), evenly(["abcdef", "x"], 5, times=2)
    (['a', 'x', 'b', 'c', 'd'], ['a', 'x', 'b', 'x', 'c'])
    """
    turns = itertools.zip_longest(*(list(of_type) * times for of_type in types))
    return list(itertools.islice((one for turn in turns for one in turn if one is not None), n))


def training_set(
    learnt: Sequence[Sequence[Example]],
    scored: Sequence[dict],
    originals: Sequence[Example],
    p,
    picture: Callable[[str], Picture],
) -> list[Example]:
    """What is to be learnt, evenly over failure types, among what the target knows, in a fixed random order.

    On the labeled route each is there once: all originals, and what the audit asked whether the target failed or not.

    Args:
        learnt: as `pairs` gives it.
        scored: records of the audit. Unless the pairs are counted (rectify_pairs), those with gate "agrees" are learnt
            once beside the findings, as far as `balanced` has them.
        originals: labelled examples the target knows (`known`), of which the first `p.rectify_original` are used; on
            the labeled route those that were probed, known or not, all of them.
        p: uses route, rectify_on, rectify_original, rectify_pairs, failure_types and seed.
        picture: a picture's key -> the picture, such as a source's `picture`.

    Raises AuditError when there is nothing to learn.
    """
    if not any(learnt):
        raise AuditError("there are no findings to repair the target with; audit it with more probes (notebook 05).")
    every = list(itertools.chain.from_iterable(learnt))
    keys = {example.key for example in every}
    counted = p.rectify_pairs or p.rectify_on != "findings"
    agreed = []
    if not counted:
        thinned = scored if p.route == "labeled" else balanced(scored, p.failure_types)
        agreed = _labelled(thinned, ["agrees"], functools.cache(picture))
    given = originals if p.route == "labeled" else originals[: p.rectify_original]
    rest = [*agreed, *(example for example in given if example.key not in keys)]
    if p.route == "unlabeled":
        times = max(1, round(FINDINGS_SHARE / (1 - FINDINGS_SHARE) * len(rest) / len(every)))
        every = every * times if counted else evenly(learnt, times * len(every), OFTENER * times)
    examples = every + rest
    random.Random(p.seed).shuffle(examples)
    return examples


def balanced(scored: Sequence[dict], kinds: int) -> list[dict]:
    """The records without some on which the target agreed: of each kind of question no more of one answer than of all
    others together, findings counted, but for a handful (HARMLESS). The last in order go first.

    An auditor asks "what is left of a2?" where nothing is, nine times in ten, and a target that learnt from all of it
    may come to say "none" too often (a guess: the thinning was only measured together with the turns of types).

    Args:
        kinds: most kinds of question told apart, by their words.
    """
    rows = [row for row in scored if row["gate"] in ("ok", "agrees")]
    dropped = set()
    for cluster in naming.clusters([(row["question"], "") for row in rows], kinds):
        said = [(normalise(rows[i]["consensus"]), rows[i]) for i in cluster]
        for answer, n in Counter(answer for answer, _ in said).items():
            excess = n - max(len(said) - n, HARMLESS)
            agreed = [row["key"] for one, row in said if one == answer and row["gate"] == "agrees"]
            dropped.update(agreed[-excess:] if excess > 0 else ())
    return [row for row in scored if row["key"] not in dropped]


def _labelled(scored: Sequence[dict], gates: Sequence[str], picture: Callable[[str], Picture]) -> list[Example]:
    rows = [row for row in scored if row["gate"] in gates]
    return [Example(row["key"], picture(row["picture"]).held, row["question"], row["consensus"]) for row in rows]


def train(
    target: vlm.VLM, examples: Sequence[Example], p, out: Path, on_step: Callable[[dict], None] | None = None
) -> Path:
    """Fine-tune the target with TRL's SFTTrainer and a LoRA adapter; the folder of the adapter.

    With a rank of 0 all weights of the text part are trained, in 32 bits, and the folder holds a whole model without
    its processor; such a training wants a learning rate some ten times smaller. Either way `vlm.load(spec,
    adapter=folder)` is the repaired target; the `target` given stays as it was. What is finished is not trained again,
    and a training that was killed goes on from its last checkpoint, to the same weights.

    Args:
        target: the model as vlm.load gives it.
        examples: what to learn, as `training_set` makes it.
        p: uses rectify_steps, rectify_batch, rectify_learning_rate, rectify_lora_rank and seed.
        out: gets adapter/, history.jsonl (one object a step) and, while training, checkpoints/.
        on_step: called with {"step", "loss", "seconds"} after each step.

    Raises AuditError for a folder that holds another training, and for a model in which there is nothing to adapt.
    """
    out = Path(out)
    adapter, purpose = out / "adapter", _purpose(target, examples, p)
    begun = out / "training.json"
    if begun.is_file() and (before := json.loads(begun.read_text())) != purpose:
        raise AuditError(_another(out, before, purpose))
    if adapter.is_dir():
        return adapter
    out.mkdir(parents=True, exist_ok=True)
    begun.write_text(json.dumps(purpose))
    if not any(adapts(name) for name, _ in target.model.named_modules()):
        raise AuditError(f'"{target.name}": no text layers with {PROJECTIONS.replace("|", ", ")} to put an adapter on.')

    unfinished = out / "adapter.unfinished"
    with contextlib.nullcontext() if p.rectify_lora_rank else whole_text_part(target.model):
        trainer = _trainer(target, examples, p, out / "checkpoints", on_step)
        try:
            with frozen_vision(target.model), vlm.quiet():
                trainer.train(resume_from_checkpoint=runs.last_checkpoint(out / "checkpoints"))
                trainer.model.save_pretrained(unfinished)
        finally:  # the target as it was: training has put the adapter into its layers
            model = trainer.model.unload() if p.rectify_lora_rank else trainer.model
            target.model = model.eval().requires_grad_(True)
            vars(target.model).pop("forward", None)  # TRL's own, with a fused head
    history = out / "history.jsonl"
    history.unlink(missing_ok=True)  # of a run that was killed between this line and the last
    steps = [{"step": log["step"], "loss": log["loss"]} for log in trainer.state.log_history if "loss" in log]
    lines.append(history, steps)
    os.replace(unfinished, adapter)  # last and at once: an adapter folder is a finished one
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return adapter


def adapts(module: str) -> bool:
    """Whether a module of this name gets an adapter: the text part's projections do, the vision tower's do not.

    >>> [adapts(f"model.{part}.layers.0.self_attn.q_proj") for part in ("language_model", "vision_tower")]
    [True, False]
    """
    return re.fullmatch(TEXT_PART, module) is not None


@contextlib.contextmanager
def whole_text_part(model) -> Iterator[None]:
    """While it lasts, the text part's weights are what is trained, all in 32 bits; then all weights are as they were.

    In 16 bits most steps of a fine-tuning are too small to change a weight at all.
    """
    before = {name: weight.detach().to("cpu", copy=True) for name, weight in model.named_parameters()}
    for name, weight in model.named_parameters():
        weight.data = weight.data.float()
        weight.requires_grad_(re.fullmatch(WHOLE_TEXT_PART, name) is not None)
    try:
        yield
    finally:
        for name, weight in model.named_parameters():
            weight.data = before[name].to(weight.device)


def _trainer(target, examples, p, folder: Path, on_step):
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class AnswerTrainer(SFTTrainer):
        """SFTTrainer's loss, but the head sees only the last columns, where `collate` puts all answers.

        On a CPU the original scores every image and question token against the vocabulary, half of a step's time.
        """

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            width = int((labels != -100).sum(1).max())
            out = model(**inputs, use_cache=False, logits_to_keep=width + 1)
            logits, wanted = out.logits[:, -width - 1 : -1], labels[:, -width:]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=-100)
            if num_items_in_batch is not None:  # the answers' tokens of a whole step, of which this may be a part
                loss = loss * ((labels != -100).sum() / num_items_in_batch)
            return (loss, out) if return_outputs else loss

        def _load_from_checkpoint(self, checkpoint, model=None):
            """A whole model is saved under its family's published names, which Trainer would not find in the model."""
            if p.rectify_lora_rank:
                super()._load_from_checkpoint(checkpoint, model)
            else:
                saved = type(target.model).from_pretrained(checkpoint, dtype=torch.float32)
                target.model.load_state_dict(saved.state_dict())

    class Tell(TrainerCallback):
        started = time.perf_counter()

        def on_log(self, args, state, control, logs=None, **kwargs):
            if on_step and "loss" in logs:
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
        report_to="none",
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


def collate(target: vlm.VLM, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
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
    return (
        f"{out} holds a training on other examples or settings ({why}): start notebook 07 over with resume=False "
        "(on the command line: --from 07 --start-over), or choose another folder."
    )


def _purpose(target: vlm.VLM, examples: Sequence[Example], p) -> dict:
    """What a training folder is for; a folder of another purpose is never continued."""
    content = "\n".join(f"{e.key}\t{e.question}\t{e.answer}" for e in examples)
    settings = {key: getattr(p, key) for key in vars(p) if key.startswith("rectify_") and key != "rectify_micro_batch"}
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    return {"target": target.name, "examples": len(examples), "content": digest, "seed": p.seed, **settings}
