"""Every family does what an audit takes for granted: asked in batches, trained with GRPO and with SFT, adapted.

Each is a tiny model of its real configuration, model and processor classes (tiny.py), put to the same questions as
`auditkit check` puts to a real one. Weights are random, so answers are nonsense, but each is a different one.
"""

import contextlib
import importlib.util
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from transformers import AutoTokenizer

from auditkit.auditor import grpo
from auditkit.auditor.rewards import Rollout, Scorer
from auditkit.auditor.write import auditor_prompt
from auditkit.data.source import Example, Picture
from auditkit.errors import AuditError
from auditkit.models import by_image, image_features, processors
from auditkit.models.base import answer_questions
from auditkit.models.load import load_model
from auditkit.models.lora import TEXT_PART, adapts
from auditkit.models.offload import frozen_vision
from auditkit.models.transformers import VLM, token_probabilities
from auditkit.params import load_params
from auditkit.planning.check import adaptable, begins_once, drift, logits, modalities, same_in_batches
from auditkit.repair.finetune import collate, train_repair

QUESTIONS = ["how many boats?", "why?", "what colour is the small box at the top left of this picture?", "where is it?"]
SIZES = [(64, 48), (40, 80), (90, 30), (32, 32)]
needs_num2words = pytest.mark.skipif(
    importlib.util.find_spec("num2words") is None, reason="SmolVLM's processor wants the package num2words"
)
NEVER_ON_THE_WAY = ("gemma4", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "glm4v", "glm46v", "ovis2")
NAMES = [pytest.param(name, marks=needs_num2words) if name == "smolvlm" else name for name in tiny.FAMILIES]


@pytest.fixture(scope="module", params=NAMES)
def family(request, tmp_path_factory):
    """(its name, its model's folder, its model): the model is never changed."""
    folder = tiny.save(request.param, tmp_path_factory.mktemp("models") / request.param)
    return SimpleNamespace(name=request.param, folder=folder, model=load_model(folder))


@pytest.fixture(scope="module")
def images():
    draw = np.random.default_rng(0).integers
    return [Image.fromarray(draw(0, 256, (high, wide, 3), dtype=np.uint8)) for wide, high in SIZES]


# ------------------------------------------------------------------------------------------------------------- asking


def test_a_mixed_batch_is_answered_as_one_by_one_in_any_order(family, images):
    same_in_batches(family.model, images, QUESTIONS)
    assert len(set(answer_questions(family.model, images, QUESTIONS))) == 4  # or the order of answers would not show
    assert drift(family.model, images, QUESTIONS) < 1e-4
    # the same question on other images, and other questions on the same image, each go with their own
    for pictures, questions in ((images, QUESTIONS[2:3] * 4), (images[:1] * 4, QUESTIONS)):
        same_in_batches(family.model, pictures, questions)
        assert len(set(answer_questions(family.model, pictures, questions, 12))) > 1


WHOLE = {  # families whose rows are read whole, and share the image's encoding if anything -> why
    "paligemma2": "both directions", "qwen2_vl": "height and width", "qwen2_5_vl": "height and width",
    "qwen3_vl": "height and width", "qwen3_vl_moe": "height and width", "qwen3_5": "height and width",
    "glm4v": "height and width", "glm46v": "height and width", "mllama": "",
}  # fmt: skip


def test_rows_about_one_image_share_it_and_are_answered_and_scored_the_same(family, images, monkeypatch):
    """Eight, two and one questions an image, of mixed lengths, and an image that comes again later."""
    model, shared, begin = family.model, [], by_image.begin
    encoded, with_features = [], by_image.with_features
    eight = [
        *QUESTIONS,
        "is it?",
        "what is the large red thing?",
        "a b c?",
        "how many small boxes are there, and where?",
    ]
    pictures = [images[0]] * 8 + [images[1]] * 2 + images[2:] + [images[1]]
    asked = eight + QUESTIONS[1:3] + QUESTIONS[2:] + ["why not?"]

    def watched(*rows, **more):
        shared.append(begin(*rows, **more))
        return shared[-1]

    def features(*rows):
        encoded.append(with_features(*rows))
        return encoded[-1]

    monkeypatch.setattr(by_image, "begin", watched)
    monkeypatch.setattr(by_image, "with_features", features)
    said = [model.write(pictures, asked, limit) for limit in (1, 12)]
    chances = token_probabilities(model, pictures, ["ask"] * len(asked), asked)
    assert any(shared) == (family.name not in WHOLE) and all(shared) == any(shared)
    assert WHOLE.get(family.name, "") in by_image.why_unshared(model, 0)
    assert len(encoded) == (3 if family.name in WHOLE else 0)  # once for each batch
    assert all(map(bool, encoded)) == (family.name != "mllama")
    apart = [picture.copy() for picture in pictures]  # no two the same object
    assert said == [model.write(apart, asked, limit) for limit in (1, 12)]
    for one, other in zip(chances, token_probabilities(model, apart, ["ask"] * len(asked), asked), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-7)


def test_rows_share_an_image_also_in_a_training_that_computes_activations_again(tmp_path, images):
    """Then a layer throws its cache away while it learns; what it writes and weighs in between must not feel it."""
    model, asked = load_model(tiny.save("gemma3", tmp_path / "model")), QUESTIONS * 2
    said = model.write(images[:1] * 8, asked, 8)
    chances = token_probabilities(model, images[:1] * 8, ["ask"] * 8, asked)
    model.model.gradient_checkpointing_enable()
    model.model.train()
    for tried in (model.tried, {}):  # tried before, and tried now
        model.tried = dict(tried)
        assert model.write(images[:1] * 8, asked, 8) == said
        assert token_probabilities(model, images[:1] * 8, ["ask"] * 8, asked) == chances
        assert model.tried == {"shared": ""} and model.model.training


def test_prompts_without_a_picture_may_stand_among_others(family, images):
    pictures = [None, images[1], None, images[3]]
    if family.name == "paligemma2":
        with pytest.raises(AuditError, match="reads no text without a picture"):
            answer_questions(family.model, pictures, QUESTIONS)
        return
    if family.name == "mllama":  # beside a picture its text layers look at what is not there, so they are asked apart
        alone = [family.model.write([i], [q], 8)[0] for i, q in zip(pictures, QUESTIONS, strict=True)]
        assert drift(family.model, pictures, QUESTIONS) > image_features.ROUNDING[torch.float32]
        assert answer_questions(family.model, pictures, QUESTIONS, 8) == alone
        return
    same_in_batches(family.model, pictures, QUESTIONS)
    assert (
        answer_questions(family.model, pictures, QUESTIONS)[1::2]
        == answer_questions(family.model, images, QUESTIONS)[1::2]
    )


def test_image_and_question_both_matter(family, images):
    modalities(family.model, images, QUESTIONS)
    with pytest.raises(AuditError, match="another image changes nothing"):
        modalities(family.model, images[:1] * 2, QUESTIONS)
    with pytest.raises(AuditError, match="another question changes nothing"):
        modalities(family.model, images, QUESTIONS[:1] * 2)


def test_prompts_are_the_familys_own_and_begin_once(family, images):
    kind, tokenizer = tiny.FAMILIES[family.name], family.model.processor.tokenizer
    text = processors.chat(family.model, "how many boats?")
    assert text == kind.prompt
    begins_once(family.model, images[0], "how many boats?")
    ids = processors.batch(family.model, images[:1], [text])["input_ids"][0].tolist()
    assert ids.count(tokenizer.bos_token_id) == (kind.bos is not None)
    if kind.adds_bos and text.startswith(kind.bos):  # as the tokenizer comes, a chat's text begins twice
        careless = AutoTokenizer.from_pretrained(family.folder)(text)["input_ids"]
        assert careless[:2] == [tokenizer.bos_token_id] * 2 and ids[1] != ids[0] == tokenizer.bos_token_id
    # every special token of the template and of the answer's end is one token
    assert tokenizer.tokenize(kind.end) == [kind.end]
    assert "".join(tokenizer.convert_ids_to_tokens(ids)).count("<|im_start|>") == text.count("<|im_start|>")


def test_a_processor_laid_out_as_on_the_hub_is_loaded_without_torchvision(family, images, tmp_path):
    """There, image processors have a file of their own, and name the class that needs torchvision."""
    folder = shutil.copytree(family.folder, tmp_path / "mine")
    settings = json.loads((folder / "processor_config.json").read_text())
    pictures = settings.pop("image_processor")
    kind = pictures["image_processor_type"].replace("Pil", "Fast")
    pictures |= {"image_processor_type": kind, "processor_class": settings["processor_class"]}
    if "feature_extractor" in settings:  # Gemma 4's are all in one file
        settings["image_processor"] = pictures
    else:
        (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    (folder / "processor_config.json").write_text(json.dumps(settings))
    mine = load_model(folder)
    assert type(mine.processor).__name__ == settings["processor_class"]
    assert torch.equal(logits(mine, images, QUESTIONS), logits(family.model, images, QUESTIONS))


def test_a_text_that_begins_twice_is_told(family, images, monkeypatch):
    if tiny.FAMILIES[family.name].bos is None:
        pytest.skip("this family has no BOS token")
    batch = processors.batch

    def doubled(*what):
        inputs = batch(*what)
        bos = torch.full((1, 1), family.model.processor.tokenizer.bos_token_id)
        return inputs | {"input_ids": torch.cat([bos, inputs["input_ids"]], 1)}

    monkeypatch.setattr(processors, "batch", doubled)
    with pytest.raises(AuditError, match="2 times"):
        begins_once(family.model, images[0], "how many boats?")


def test_what_a_model_wrote_is_scored_as_it_was_written(family, images):
    """Greedy decoding token by token, and one forward pass over prompt and answer, expect the same tokens."""
    model, texts = family.model, [processors.chat(family.model, question) for question in QUESTIONS]
    inputs = processors.batch(model, images, texts)
    out = model.model.generate(**inputs, max_new_tokens=6, output_scores=True, return_dict_in_generate=True)
    written = out.sequences[:, inputs["input_ids"].shape[1] :]
    stepwise = torch.stack(out.scores, 1).log_softmax(-1).gather(-1, written[..., None])[..., 0]
    again = logps(model, images, QUESTIONS, list(written))
    kept = torch.ones(model.model.config.get_text_config().vocab_size, dtype=torch.bool)
    kept[model.model.generation_config.suppress_tokens] = False
    assert torch.allclose(again.masked_fill(~kept, -torch.inf).log_softmax(-1).gather(-1, written[..., None])[..., 0],
                          stepwise, atol=1e-4)  # fmt: skip


@torch.inference_mode()
def logps(model, images, questions, endings):
    """The log-probabilities of every token at every place of n endings: [n, longest, vocabulary]."""
    texts = [processors.chat(model, question) for question in questions]
    inputs = processors.continued(model, images, texts, endings)
    longest = max(map(len, endings))
    del inputs["labels"]
    return model.model(**inputs, logits_to_keep=longest + 1).logits[:, -longest - 1 : -1].log_softmax(-1)


def test_text_layers_are_found_and_the_vision_tower_is_none(family):
    adaptable(family.model)
    names = [name for name, _ in family.model.model.named_modules() if adapts(name)]
    assert len(names) == tiny.FAMILIES[family.name].adapted
    assert all("language_model" in name or "text_model" in name for name in names)


def test_without_text_layers_a_model_can_be_asked_but_not_trained(family):
    blind = VLM("blind", torch.nn.ModuleDict({"vision_tower": torch.nn.Linear(1, 1)}), None)
    with pytest.raises(AuditError, match="no text layers"):
        adaptable(blind)


# ----------------------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def rectified(family, images, tmp_path_factory):
    """(the model after an SFT of two steps, its weights before, the adapter's folder, what was learned)."""
    model = load_model(family.folder)
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    examples = [Example(f"e{i}", image, question, "two red boats") for i, (image, question) in
                enumerate(zip(images, QUESTIONS, strict=True))]  # fmt: skip
    p = SimpleNamespace(
        seed=0,
        rectify_steps=3,
        rectify_batch=4,
        rectify_micro_batch=0,
        rectify_learning_rate=5e-2,
        rectify_lora_rank=4,
        run_name="test",
        report_to=[],
    )
    losses = []
    adapter = train_repair(model, examples, p, tmp_path_factory.mktemp("sft"), lambda step: losses.append(step["loss"]))
    return SimpleNamespace(model=model, before=before, adapter=adapter, losses=losses, examples=examples)


def test_without_a_way_back_through_the_vision_tower_gradients_are_the_same(family, images):
    """With checkpointing, as on a GPU, which has the tower's activations require gradients in most families."""
    from peft import LoraConfig, get_peft_model
    from torch.utils._pytree import tree_leaves

    model = load_model(family.folder)
    pairs = zip(images, QUESTIONS, strict=True)
    examples = [Example(question, image, question, "two red boats") for image, question in pairs]
    inputs, tower = collate(model, examples), model.model.get_encoder(modality="image")
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=TEXT_PART, init_lora_weights=False)
    adapted = get_peft_model(model.model, config).train()
    adapted.enable_input_require_grads()
    adapted.activation_checkpointing_enable()

    def learn(vision) -> tuple[dict, list[bool]]:
        """Each gradient, and of each part of the tower, as it was passed, whether the way back leads through it."""
        passed: list[bool] = []

        def look(part, given, out):
            passed.append(any(t.grad_fn is not None for t in tree_leaves(out) if isinstance(t, torch.Tensor)))

        watched = [part.register_forward_hook(look) for part in tower.modules()]
        adapted.zero_grad()
        with vision(model.model):
            adapted(**inputs).loss.backward()
        for hook in watched:
            hook.remove()
        return {name: w.grad.clone() for name, w in adapted.named_parameters() if w.grad is not None}, passed

    (plain, before), (gradients, after) = learn(contextlib.nullcontext), learn(frozen_vision)
    assert plain.keys() == gradients.keys() and len(plain) == 2 * tiny.FAMILIES[family.name].adapted
    assert all(w.any() and torch.equal(w, gradients[name]) for name, w in plain.items())
    assert after and not any(after)
    # of these towers transformers does not know the input, so they were never on the way back
    assert any(before) == (family.name not in NEVER_ON_THE_WAY)
    assert "forward" not in vars(tower)


def test_an_sft_step_changes_the_adapter_and_nothing_else(family, rectified, images):
    after = rectified.model.model.state_dict()
    assert after.keys() == rectified.before.keys()
    assert all(torch.equal(after[name], value) for name, value in rectified.before.items())
    assert rectified.losses[-1] < rectified.losses[0]
    # the first loss is the plain mean of what the untrained model gives the answers' tokens, the end of turn among them
    endings = [processors.ending(family.model, e.question, e.answer) for e in rectified.examples]
    assert {end.lstrip() for end in endings} == {"two red boats" + tiny.FAMILIES[family.name].end}
    ids = [
        torch.tensor(family.model.processor.tokenizer(end, add_special_tokens=False)["input_ids"]) for end in endings
    ]
    given = logps(family.model, images, QUESTIONS, ids).gather(-1, torch.stack(ids)[..., None])
    assert abs(-given.mean().item() - rectified.losses[0]) < 1e-3


def test_an_adapter_saves_loads_switches_off_and_merges(family, rectified, images):
    from peft import PeftModel

    base = load_model(family.folder)
    plain = logits(base, images, QUESTIONS)
    merged = load_model(family.folder, adapter=rectified.adapter)
    wanted = logits(merged, images, QUESTIONS)
    assert (wanted - plain).abs().max() > 0.01
    adapted = replace(base, model=PeftModel.from_pretrained(base.model, rectified.adapter))
    assert torch.allclose(logits(adapted, images, QUESTIONS), wanted, atol=1e-4)
    assert answer_questions(adapted, images, QUESTIONS) == answer_questions(merged, images, QUESTIONS)
    with adapted.model.disable_adapter():
        assert torch.allclose(logits(adapted, images, QUESTIONS), plain, atol=1e-5)
    assert answer_questions(merged, images, QUESTIONS) != answer_questions(family.model, images, QUESTIONS)
    alone = load_model(rectified.adapter)  # an adapter's folder names its own model
    assert torch.allclose(logits(alone, images, QUESTIONS), wanted, atol=1e-5)


def test_a_grpo_step_changes_the_adapter_and_nothing_else(family, images, repository, tmp_path, monkeypatch):
    """grpo.train_auditor as it is, but completions are judged by their tokens: no random model writes a question."""
    auditor, seen = load_model(family.folder), {}
    before = {name: value.clone() for name, value in auditor.model.named_parameters()}
    p = replace(
        load_params(repository / "params" / "smoke.yaml"), ways=["question"], grpo_steps=2, grpo_images=2, group_size=2,
        grpo_checkpoints=1, grpo_learning_rate=5e-2, grpo_beta=0.02, max_question_tokens=6, replay_clusters=1,
        grpo_lora_rank=4, grpo_temperature=1.0,
    )  # fmt: skip

    def score(self, step, pictures, ways, texts, tokens):
        if step != self.step:
            self.step = step
            self.rollouts = [
                Rollout(f"{step}-{i}", step, pictures[i], texts[i], f"{i}?", f"{i}?", "a", ["b"], "b",
                                 i % 2 == 0, 0, list(map(int, tokens[i])))
                for i in range(len(texts))
            ]  # fmt: skip
            seen.setdefault("rows", self.rollouts)
        return self.rollouts

    scored = grpo.AuditorTrainer._get_per_token_logps_and_entropies

    def watched(self, model, *inputs, **more):
        out = scored(self, model, *inputs, **more)
        seen.setdefault("logps", out[0].detach())
        return out

    replayed = grpo.AuditorTrainer._replay_loss

    def watched_replay(self, model, drawn):
        loss = replayed(self, model, drawn)
        seen.setdefault("replay", loss.detach()), seen.setdefault("drawn", drawn)
        return loss

    monkeypatch.setattr(Scorer, "score", score)
    monkeypatch.setattr(grpo.AuditorTrainer, "_get_per_token_logps_and_entropies", watched)
    monkeypatch.setattr(grpo.AuditorTrainer, "_replay_loss", watched_replay)
    (tmp_path / "untrained.json").write_text('["how many boats are there?", "where is it now?"]')
    pictures = [Picture(f"p{i}", image) for i, image in enumerate(images)]
    grpo.train_auditor(auditor, None, [], pictures, p, tmp_path)
    after = dict(auditor.model.named_parameters())
    for name, value in before.items():
        here = (
            name
            if name in after
            else name.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias")
        )
        assert torch.equal(after[here], value), name
    moved = [value.abs().max() for name, value in after.items() if "lora_B" in name]
    assert len(moved) == tiny.FAMILIES[family.name].adapted and min(moved) > 0
    # before its first step the adapter is zero: what TRL makes of completions, and the replay of its successes, is what
    # a plain forward pass makes of them behind their prompts
    for rows, found in ((seen["rows"], seen["logps"]), (seen["drawn"], seen["replay"])):
        endings = [torch.tensor(row.tokens) for row in rows]
        pictured = [images[int(row.picture[1:])] for row in rows]
        plain = logps(family.model, pictured, [auditor_prompt()] * len(rows), endings)
        rows = [row[-len(end) :].gather(-1, end[:, None])[:, 0] for row, end in zip(plain, endings, strict=True)]
        if found.dim():
            for mine, its in zip(rows, found, strict=True):
                assert torch.allclose(mine, its[: len(mine)], atol=1e-4)
        else:
            assert abs(-torch.cat(rows).mean() - found) < 1e-4
