"""A model of CLIP's kind is asked whether a made picture moved towards its wish, and the audit drops what did not."""

import hashlib
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from PIL import Image

from auditkit.audit.score import score_probes
from auditkit.counterfactual.clip_direction import UNLIKE, direction_gains, load_picture_check
from auditkit.counterfactual.store import ImageStore, make_wished, pipeline_loaders
from auditkit.errors import AuditError
from auditkit.findings.by_way import image_outcomes
from auditkit.miniature import clip, likened, painters, shipped
from auditkit.miniature.boards import Boards, scene_of
from auditkit.miniature.world import render
from auditkit.params import load_params
from auditkit.runs.probe import Probe, Wish, parse_question

P = SimpleNamespace(device="cpu", dtype="auto", batch_size=64, memory="together", picture_gain=0.2)


def named(spec, **more) -> SimpleNamespace:
    return SimpleNamespace(**{**vars(P), "picture_check": str(spec), **more})


def siglip():
    """A tiny SigLIP with random weights: its text is padded, and its end not marked."""
    words = painters.tokenizer(16, "$A </s>")
    text = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    config = hf.SiglipConfig(
        text_config=text | {"vocab_size": len(words), "max_position_embeddings": 16, "projection_size": 16},
        vision_config=text | {"image_size": 32, "patch_size": 8},
    )
    images = hf.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    return hf.SiglipModel(config), hf.SiglipProcessor(images, words)


@pytest.fixture(scope="module", params=[clip.build, siglip], ids=["CLIP", "SigLIP"])
def judge(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("judge")
    model, processor = request.param()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return load_picture_check(named(folder))


def boards(n: int) -> list[Image.Image]:
    return [board.image for board in Boards().pictures("audit", n, 0)]


def test_a_gain_is_the_cosine_of_two_changes_whatever_its_batch(judge):
    pictures = boards(6)
    before, after = pictures[:5], [*pictures[1:5], pictures[4].copy()]
    wishes = [Wish("", f"what shape is the object at {place}?", "star") for place in ("a1", "b2", "c3", "d4", "a2")]
    together = direction_gains(judge, before, after, wishes)
    assert together[4] == 0.0 and all(-1 <= gain <= 1 and gain for gain in together[:4])
    alone = direction_gains(replace(judge, batch_size=1), before, after, wishes)
    assert together == pytest.approx(alone, abs=2e-3)
    back = direction_gains(judge, after, before, wishes)
    assert back == pytest.approx([-gain for gain in together], abs=2e-3)
    with torch.inference_mode():  # the first, by hand
        texts = [wishes[0].check, f"{wishes[0].check} star"]
        inputs = judge.processor(text=texts, images=[before[0], after[0]], padding="max_length", return_tensors="pt")
        out = judge.model(**inputs)
        (image0, image1), (text0, text1) = (torch.nn.functional.normalize(x, dim=-1) for x in
                                            (out.image_embeds, out.text_embeds))  # fmt: skip
    assert together[0] == pytest.approx(torch.cosine_similarity(image1 - image0, text1 - text0, dim=0).item(), abs=1e-3)
    assert direction_gains(judge, [], [], []) == []


def test_what_compares_no_pictures_with_texts_is_one_sentence(tmp_path):
    with pytest.raises(AuditError, match='picture_check: "miniature:target" is no model that compares pictures'):
        load_picture_check(named("miniature:target"))
    with pytest.raises(AuditError, match="is no model that compares pictures with texts .*such as openai/clip"):
        load_picture_check(named(tmp_path))
    with pytest.raises(AuditError, match="no such miniature model"):
        load_picture_check(named("miniature:nothing"))
    model, processor = siglip()
    model.config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(AuditError, match="weights could not be loaded"):
        load_picture_check(named(tmp_path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"picture_check": "vllm:org/clip"}, "picture_check: .* is to be a folder or a hub id"),
        ({"picture_check": "org/clip?bits=4"}, "without \\?bits"),
        ({"picture_gain": 1.0}, "picture_gain: 1.0 is not in"),
    ],
)
def test_what_cannot_judge_is_refused_with_its_key(change, said, repository, monkeypatch):
    monkeypatch.chdir(repository)
    with pytest.raises(AuditError, match=said):
        load_params("params/demo.yaml", **change)


# ---- scores of records made by hand ---------------------------------------------------------------------------------


def record(key: str, gain, **more) -> dict:
    row = {"key": key, "picture": f"made-{key}", "question": "what is it?", "text": "", "way": "edit"}
    row |= {"base": "audit-0", "pairing": "(Q*, I*)", "made": "paint it", "check": "what colour is it?"}
    row |= {"expected": "red", "why": "", "gain": gain, "target": "dog", "references": {"one": "cat", "two": "cat"}}
    return row | {"checked": {"one": "red", "two": "red"}} | more


def test_a_picture_unlike_its_wish_is_dropped_and_counted_under_a_reason_of_its_own(repository, monkeypatch):
    monkeypatch.chdir(repository)
    p = load_params("params/demo.yaml")
    blue = {"checked": {"one": "blue", "two": "blue"}}
    rows = [record("a", 0.5), record("b", 0.2), record("c", -0.1, **blue), record("d", None), record("e", 0.21)]
    scored = score_probes(rows, p)
    assert [row["why"] for row in scored] == ["", UNLIKE, "not applied", "", ""]
    assert [row["outcome"] for row in scored] == ["finding", "bad picture", "bad picture", "finding", "finding"]
    counted = image_outcomes(scored, [], p)
    assert counted["images"]["dropped"] == {UNLIKE: 1, "not applied": 1}
    assert counted["editor"]["command_applied"]["value"] == 0.8  # by the references' word alone
    assert (counted["editor"]["towards_the_wish"]["value"], counted["editor"]["towards_the_wish"]["n"]) == (0.5, 4)
    assert [row["outcome"] for row in score_probes(rows, replace(p, picture_gain=0.1))] == [
        "finding",
        "finding",
        "bad picture",
        "finding",
        "finding",
    ]
    old = [{k: v for k, v in row.items() if k != "gain"} for row in rows]  # of a run before there were gains
    assert score_probes(old, p)[1]["outcome"] == "finding"
    assert Probe(**{k: v for k, v in old[0].items() if k in Probe.__dataclass_fields__}).gain is None


# ---- the miniature's own ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own():
    return load_picture_check(named("miniature:likeness"))


def test_the_shipped_model_is_of_its_class_and_intact(own):
    assert type(own.model).__name__ == "CLIPModel" and 1e6 < own.model.num_parameters() < 2e6
    sums = dict(line.split()[::-1] for line in (shipped.WEIGHTS / "SHA256SUMS").read_text().splitlines())
    file = shipped.WEIGHTS / "likeness" / "model.safetensors"
    assert sums["likeness/model.safetensors"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_shipped_model_tells_what_was_wished_for_from_what_was_not(own):
    found = likened.measured(own, 12, seed=7)
    assert found[likened.DONE]["edits"]["value"] >= 0.88
    most = {likened.BOARDS: 0.15, likened.SAME_BOARD: 0.1, likened.OTHER: 0.1, likened.SAME: 0.0}
    for name, share in most.items():
        assert found[name]["edits"]["value"] <= share and found[name]["caption"]["value"] <= 0.25, name


def test_an_album_says_how_far_each_picture_moved(own, repository, monkeypatch):
    monkeypatch.chdir(repository)
    p = load_params("params/smoke.yaml", picture_check="miniature:likeness")
    rng, pictures = random.Random(1), Boards().pictures("audit", 12, 0)
    paints = ImageStore(pipeline_loaders(p), p)
    texts = []
    for picture in pictures:
        command = likened.edits.draw(scene_of(picture.key), rng, "remove")
        texts.append(f"{command}\n{' | '.join(likened.edits.check(scene_of(picture.key), command))}")
    found = make_wished(paints, pictures, ["edit"] * 11 + [""], texts)
    assert list(found) == list(range(11)) and paints._judge.model is not own.model
    gains = [gain for _, made, gain in found.values() if not made.why]
    assert len(gains) >= 8 and sum(gain > p.picture_gain for gain in gains) >= 0.8 * len(gains)
    assert all(gain is None for _, made, gain in found.values() if made.why)
    without = make_wished(ImageStore(pipeline_loaders(p), replace(p, picture_check="")), pictures, ["edit"] * 12, texts)
    assert all(gain is None for *_, gain in without.values())


def test_training_draws_wishes_that_came_true_once(tmp_path):
    rng = random.Random(0)
    for kind in clip.KINDS:
        for _ in range(5):
            one = clip.wished(rng, kind)
            assert not clip.holds(one.before, one.wish) and clip.holds(one.after, one.wish)
            assert one.other != one.before and not clip.holds(one.other, one.wish)
            assert render(one.other).any() and parse_question(one.wish.check) == one.wish.check
    model, processor = clip.build()
    before = [p.detach().clone() for p in model.parameters()]
    clip.learn(model, processor, 2, 0, tmp_path / "log.jsonl", 1e-3, tiles=torch.zeros(4, 255, 2, 768))
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
