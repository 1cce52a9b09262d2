"""Repairing a model: what is learned, what stays as it was, and what is left after a kill."""

import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from auditkit import specs
from auditkit.consensus.same import Same
from auditkit.data.source import Example
from auditkit.errors import AuditError
from auditkit.miniature import families, lessons, shipped
from auditkit.miniature.boards import Boards, scene_of
from auditkit.models import downloads
from auditkit.models.answers import AnswerBook
from auditkit.models.base import answer_questions
from auditkit.models.load import load_model
from auditkit.models.lora import adapts
from auditkit.models.transformers import VLM
from auditkit.repair.finetune import collate, train_repair, why_not_trainable
from auditkit.repair.training_set import balanced, build_training_set, known_originals, training_pairs


def settings(**changes):
    return SimpleNamespace(**{"rectify_pairs": 0, "rectify_on": "findings", "route": "unlabeled",
        "seed": 0, "failure_types": 8, "types_by": "text",
        "rectify_steps": 6, "rectify_batch": 8, "rectify_learning_rate": 5.0e-3, "rectify_lora_rank": 8,
        "rectify_micro_batch": 0, "rectify_original": 20, "run_name": "test", "report_to": [], **changes,
    })  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An untrained model of each family, saved as a model folder is."""
    saved = {}
    for family in families.FAMILIES:
        model, processor = families.build(family, "small", lessons.words(), lessons.corpus(50), seed=0)
        saved[family] = tmp_path_factory.mktemp("models") / family
        model.save_pretrained(saved[family])
        processor.save_pretrained(saved[family])
    return saved


@pytest.fixture(scope="module")
def examples():
    return Boards().examples(24, 0)


@pytest.fixture(scope="module")
def repaired(folders, examples, tmp_path_factory):
    target, out, steps = load_model(folders["paligemma2"]), tmp_path_factory.mktemp("rectify"), []
    before = {name: value.clone() for name, value in target.model.state_dict().items()}
    adapter = train_repair(target, examples, settings(), out, steps.append)
    return SimpleNamespace(target=target, out=out, steps=steps, before=before, adapter=adapter)


def asked(model, examples):
    return answer_questions(model, [e.image for e in examples], [e.question for e in examples])


def finding(i, gate="finding"):
    asked = {"key": f"p{i}", "picture": f"audit-0-{i}", "question": "how many objects are there?"}
    return asked | {"target": "3", "consensus": "4", "outcome": gate}


def unlike_findings(examples):
    """Those that ask otherwise than `finding`, so that none of them is learnt beside one; at least 20."""
    return [example for example in examples if example.question != finding(0)["question"]]


def training_set(scored, originals, p):
    boards = Boards()
    learnt = training_pairs(
        scored,
        originals,
        boards.picture,
        **{name: getattr(p, name) for name in ("rectify_on", "rectify_pairs", "failure_types", "types_by", "seed")},
    )
    return build_training_set(learnt, scored, originals, p, boards.picture)


def test_original_examples_the_target_gets_wrong_are_left_out_and_none_is_asked_twice(examples, tmp_path):
    target = load_model("miniature:target")
    right = [answer == example.answer for answer, example in zip(asked(target, examples), examples, strict=True)]
    assert 0 < sum(right) < len(examples)
    book = AnswerBook(tmp_path / "answers.jsonl")
    for _ in range(2):
        assert known_originals(target, examples, book, Same(), 8) == [
            e for e, r in zip(examples, right, strict=True) if r
        ]
    assert book.asked == len(examples)


def test_few_findings_are_a_fifth_of_the_training_set_with_the_consensus_as_label(examples):
    scored = [finding(i) for i in range(3)] + [finding(i, gate="agrees") for i in range(3, 7)]
    scored += [finding(7, gate="duplicate"), finding(8, gate="no consensus"), finding(9, gate="implausible")]
    others = unlike_findings(examples)
    learned = training_set(scored, others, settings())
    asked = [example for example in learned if example.key.startswith("p")]
    # three findings, twice each, four probes on which all agreed, and 20 originals
    assert len(learned) == 30 and len(asked) == 10
    assert Counter(example.key for example in asked) == {f"p{i}": 2 if i < 3 else 1 for i in range(7)}
    assert {example.answer for example in asked} == {"4"}
    assert np.array_equal(asked[0].image, Boards().picture(f"audit-0-{asked[0].key[1:]}").image)
    again = training_set(scored, others, settings())
    assert [example.key for example in again] == [example.key for example in learned]
    counts = replace(others[0], key="other/q", question="how many objects are there?", answer="3")
    beside = training_set(scored, [counts, *others], settings())
    assert Counter(example.key for example in beside)["other/q"] == 1 + 6, "beside each copy of a finding once"


def test_more_findings_than_originals_are_all_kept_once(examples):
    learned = training_set([finding(i) for i in range(50)], unlike_findings(examples), settings())
    assert len(learned) == 70
    assert len(training_set([finding(1)], examples, settings(rectify_original=0))) == 1


def test_rare_failure_types_are_learnt_as_often_as_frequent_ones_but_for_a_limit(examples):
    clock = [finding(i) | {"question": "what time does the clock show?", "target": "6"} for i in range(90)]
    rare = [finding(i) | {"question": "what colour is the star?", "target": "red"} for i in range(90, 100)]
    single = [finding(100) | {"question": "is there a sign?", "target": "no", "consensus": "yes"}]
    scored = [*clock, *rare, *single]
    times = Counter(e.key for e in training_set(scored, [], settings()))
    assert sum(times.values()) == len(scored), "as many as without turns"
    per = [sum(times[row["key"]] for row in some) for some in (clock, rare, single)]
    assert per == [48, 48, 5], "five times each of the rare ones, the rest from the frequent type"
    counted = training_set(scored, [], settings(rectify_pairs=6))
    kinds = Counter(e.question.split()[1] for e in counted)
    assert len(counted) == 6 and kinds == {"time": 3, "colour": 2, "there": 1}, "in turn, none twice"


def test_controls_learn_from_whatever_was_agreed_or_from_labels_and_from_no_probe_beside_it(examples):
    scored = [finding(i) for i in range(4)] + [finding(i, gate="agrees") for i in range(4, 20)]
    scored += [finding(20, gate="no consensus")]
    p = settings(rectify_on="consensus", rectify_original=0)
    assert {e.key for e in training_set(scored, examples, p)} == {f"p{i}" for i in range(20)}
    some = training_set(scored, examples, settings(rectify_on="consensus", rectify_original=0, rectify_pairs=9))
    assert len(some) == len({e.key for e in some}) == 9
    assert sum(int(e.key[1:]) >= 4 for e in some) > 3, "not the findings alone"
    labels = training_set(scored, examples, settings(rectify_on="labels", rectify_pairs=5, rectify_original=0))
    assert len(labels) == 5 and set(labels) <= set(examples)


def test_an_answer_that_outweighs_its_kind_of_question_is_thinned():
    rows = [finding(i, gate="agrees") | {"consensus": "none" if i < 90 else "star"} for i in range(100)]
    rows += [finding(i) | {"question": "what colour is the star?"} for i in range(100, 120)]
    rows += [finding(i, gate="agrees") | {"question": "is there a sign?", "consensus": "yes"} for i in range(120, 124)]
    kept = balanced(rows, 8)
    said = Counter((row["consensus"], row["outcome"]) for row in kept)
    assert said == {("none", "agrees"): 10, ("star", "agrees"): 10, ("4", "finding"): 20, ("yes", "agrees"): 4}
    assert [row["key"] for row in kept] == [row["key"] for row in rows if row in kept], "in their order"


def test_nothing_found_is_nothing_to_repair(examples):
    with pytest.raises(AuditError, match="no findings"):
        training_set([finding(1, gate="agrees")], examples, settings())


@pytest.mark.parametrize("family", families.FAMILIES)
def test_only_answers_are_learned_and_prompts_are_those_of_inference(folders, examples, family):
    model = load_model(folders[family])
    batch = collate(model, examples)
    tokenizer = model.processor.tokenizer
    for row, example in enumerate(examples):
        learned = batch["labels"][row] != -100
        assert learned[-1] and torch.equal(batch["labels"][row][learned], batch["input_ids"][row][learned])
        text = tokenizer.decode(batch["input_ids"][row][learned])
        assert text == example.answer + families.FAMILIES[family].end
    # what the miniature's own trainer makes of the same chats, padded on the other side
    own = families.encode(
        model.processor, [[(e.question, e.answer)] for e in examples], np.stack([np.asarray(e.image) for e in examples])
    )
    assert batch.keys() == own.keys()
    for key in batch.keys() & {"input_ids", "token_type_ids", "labels"}:
        for mine, its, here, there in zip(
            batch[key], own[key], batch["attention_mask"], own["attention_mask"], strict=True
        ):
            assert torch.equal(mine[here == 1], its[there == 1])


@pytest.mark.parametrize("family", families.FAMILIES)
def test_adapters_never_touch_the_vision_tower(folders, family):
    names = [name for name, _ in load_model(folders[family]).model.named_modules() if adapts(name)]
    assert len(names) == 3 * 7  # layers x projections
    assert not any("vision" in name for name in names)


def test_training_learns_and_tells(repaired):
    assert [step["step"] for step in repaired.steps] == list(range(1, 7))
    assert repaired.steps[-1]["loss"] < repaired.steps[0]["loss"]
    rows = [json.loads(line) for line in (repaired.out / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 7))


def test_the_target_stays_as_it_was(repaired, folders, examples):
    after = repaired.target.model.state_dict()
    assert after.keys() == repaired.before.keys()
    assert all(torch.equal(after[name], value) for name, value in repaired.before.items())
    assert asked(repaired.target, examples[:4]) == asked(load_model(folders["paligemma2"]), examples[:4])


def test_a_saved_adapter_is_the_repaired_target(repaired, folders, examples):
    one = load_model(folders["paligemma2"], adapter=repaired.adapter)
    other = load_model(folders["paligemma2"], adapter=repaired.adapter)
    assert asked(one, examples) == asked(other, examples) != asked(repaired.target, examples)
    assert one.name != repaired.target.name  # an AnswerBook keeps them apart
    assert {path.name for path in repaired.out.iterdir()} == {"adapter", "history.jsonl", "training.json"}


def test_a_finished_adapter_is_not_trained_again(repaired, examples):
    steps = []
    assert train_repair(repaired.target, examples, settings(), repaired.out, steps.append) == repaired.adapter
    assert steps == []
    with pytest.raises(AuditError, match="other examples or settings"):
        train_repair(repaired.target, examples, settings(rectify_steps=7), repaired.out)


def test_a_killed_training_goes_on_to_the_same_weights(repaired, folders, examples, tmp_path):
    class Kill(Exception):
        pass

    def kill(step):
        if step["step"] == 5:
            raise Kill

    target = load_model(folders["paligemma2"])
    with pytest.raises(Kill):
        train_repair(target, examples, settings(), tmp_path, kill)
    torn = tmp_path / "checkpoints" / "checkpoint-4"  # killed while it was written
    torn.mkdir()
    assert not (tmp_path / "adapter").exists()
    steps = []
    adapter = train_repair(target, examples, settings(), tmp_path, steps.append)
    assert [step["step"] for step in steps] == [4, 5, 6]
    name = "adapter_model.safetensors"
    assert (adapter / name).read_bytes() == (repaired.adapter / name).read_bytes()


def test_with_checkpointing_the_weights_are_the_same_and_no_way_back_leads_through_the_vision_tower(
    repaired, folders, examples, tmp_path, checkpointing
):
    """Killed and begun again, too; afterwards the tower is as it was."""
    target = load_model(folders["paligemma2"])
    tower, passed = target.model.get_encoder(modality="image"), Counter()

    def look(part, given, out):
        passed[part.training, out.last_hidden_state.requires_grad] += 1

    def stop(step):
        if step["step"] == 5:
            raise KeyboardInterrupt

    watched = tower.register_forward_hook(look)
    with pytest.raises(KeyboardInterrupt):
        train_repair(target, examples, settings(), tmp_path, stop)
    assert "forward" not in vars(tower)
    adapter = train_repair(target, examples, settings(), tmp_path)
    watched.remove()
    assert passed == {(True, False): 5 + 3}
    name = "adapter_model.safetensors"
    assert (adapter / name).read_bytes() == (repaired.adapter / name).read_bytes()
    assert "forward" not in vars(tower)
    assert asked(target, examples[:4]) == asked(repaired.target, examples[:4])


def test_with_rank_0_the_text_part_is_trained_whole_and_nothing_else(folders, examples, tmp_path):
    """Killed and begun again, too; the folder goes where an adapter goes, also on top of one and below another."""
    p = settings(rectify_lora_rank=0, rectify_learning_rate=1.0e-3)
    target, whole = load_model(folders["paligemma2"]), tmp_path / "whole"
    before = {name: value.clone() for name, value in target.model.state_dict().items()}

    def stop(step):
        if step["step"] == 5:
            raise KeyboardInterrupt

    train_repair(target, examples, p, whole)
    with pytest.raises(KeyboardInterrupt):
        train_repair(target, examples, p, tmp_path / "killed", stop)
    adapter = train_repair(target, examples, p, tmp_path / "killed")
    name = "model.safetensors"
    assert (adapter / name).read_bytes() == (whole / "adapter" / name).read_bytes()
    assert all(torch.equal(value, before[name]) for name, value in target.model.state_dict().items())
    assert all(weight.requires_grad for weight in target.model.parameters())
    after = load_model(folders["paligemma2"], adapter=adapter)
    changed = {name for name, value in after.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and not any("vision" in name or "projector" in name for name in changed)
    assert {"language_model" in name or name.startswith("lm_head") for name in changed} == {True}
    assert any("embed_tokens" in name for name in changed) and any("norm" in name for name in changed)
    both = load_model(f"{folders['paligemma2']}?adapter={adapter}", adapter=adapter)
    assert asked(both, examples) == asked(after, examples) != asked(target, examples)


def test_rounds_of_repair_go_on_top_of_each_other(folders, examples, tmp_path):
    spec = str(folders["paligemma2"])
    first = train_repair(load_model(spec), examples, settings(), tmp_path / "1")
    repaired = specs.adapted(spec, first)
    second = train_repair(load_model(repaired), examples[:8], settings(rectify_steps=3), tmp_path / "2")
    one, after = load_model(spec, adapter=first), load_model(repaired, adapter=second)
    three = [load_model(text) for text in (spec, repaired, specs.adapted(repaired, second))]
    assert asked(three[1], examples) == asked(one, examples)
    assert asked(three[2], examples) == asked(after, examples)
    assert len({model.name for model in (*three, after)}) == 4, "an AnswerBook keeps them apart"
    assert downloads.resolve(specs.adapted(repaired, second)) == spec, "where the table of planted gaps is"
    weights = [next(v for k, v in m.model.state_dict().items() if "q_proj" in k and "vision" not in k) for m in three]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])


def test_a_model_without_text_layers_is_refused(repaired, examples, tmp_path):
    odd = VLM("odd", torch.nn.Linear(1, 1), None)
    with pytest.raises(AuditError, match='"odd"'):
        train_repair(odd, examples, settings(), tmp_path)


@pytest.mark.skipif(not (shipped.WEIGHTS / "target").is_dir(), reason="the miniature models are not built yet")
def test_the_shipped_target_unlearns_a_gap(tmp_path):
    """Fifty pictures at dusk, which the target calls day, are enough to teach it dusk; what it knew, it still knows."""
    target, boards = load_model("miniature:target"), Boards()
    question = "what atmosphere does the scene have?"
    dusks = [f"audit-0-{i}" for i in range(600) if scene_of(f"audit-0-{i}").background == "dusk"]
    found = [
        {"key": k, "picture": k, "question": question, "target": "day", "consensus": "dusk", "outcome": "finding"}
        for k in dusks[:50]
    ]
    originals = boards.examples(200, 0)
    p = settings(rectify_steps=40, rectify_batch=16, rectify_learning_rate=1.0e-3, rectify_original=200)
    adapter = train_repair(target, training_set(found, originals, p), p, tmp_path)
    repaired = load_model("miniature:target", adapter=adapter)
    held_out = [Example(key, boards.picture(key).image, question, "dusk") for key in dusks[50:90]]
    assert asked(target, held_out).count("dusk") <= 4
    assert asked(repaired, held_out).count("dusk") >= 30
    others = [e for e in boards.examples(200, 1) if "atmosphere" not in e.question]

    def right(model):
        return sum(said == e.answer for said, e in zip(asked(model, others), others, strict=True))

    assert right(repaired) >= right(target) - 8


@pytest.mark.parametrize("spec", ["https://host/v1#org/large", "vllm:org/large", "org/large?bits=4"])
def test_a_target_whose_weights_cannot_be_trained_here_is_said_so(spec):
    assert "audited but not repaired" in why_not_trainable(spec) and "name its folder or hub id" in why_not_trainable(
        spec
    )
    assert not why_not_trainable("org/large?max_pixels=802816")
