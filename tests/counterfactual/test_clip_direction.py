"""A model of CLIP's kind is asked whether a made picture moved towards its wish, and the audit drops what did not."""

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from picture_checks import clip, save, siglip
from PIL import Image
from scoring import score

from auditkit.counterfactual.clip_direction import UNLIKE, direction_gains, load_picture_check
from auditkit.counterfactual.store import ImageStore, make_wished, pipeline_loaders
from auditkit.errors import AuditError
from auditkit.findings.by_way import image_outcomes
from auditkit.miniature import edits
from auditkit.miniature.boards import Boards, scene_of
from auditkit.params import load_params
from auditkit.runs.probe import Probe, Wish

P = SimpleNamespace(device="cpu", dtype="auto", batch_size=64, memory="together", picture_gain=0.2)


def named(spec, **more) -> SimpleNamespace:
    return SimpleNamespace(**{**vars(P), "picture_check": str(spec), **more})


@pytest.fixture(scope="module", params=[clip, siglip], ids=["CLIP", "SigLIP"])
def judge(request, tmp_path_factory):
    return load_picture_check(named(save(request.param, tmp_path_factory.mktemp("judge"))))


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
    with pytest.raises(AuditError, match="holds no weights as safetensors"):
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
    scored = score(rows, p)
    assert [row["why"] for row in scored] == ["", UNLIKE, "not applied", "", ""]
    assert [row["outcome"] for row in scored] == ["finding", "bad picture", "bad picture", "finding", "finding"]
    counted = image_outcomes(scored, [], edit_region=p.edit_region, edit_rest=p.edit_rest, picture_gain=p.picture_gain)
    assert counted["images"]["dropped"] == {UNLIKE: 1, "not applied": 1}
    assert counted["editor"]["command_applied"]["value"] == 0.8  # by the references' word alone
    assert (counted["editor"]["towards_the_wish"]["value"], counted["editor"]["towards_the_wish"]["n"]) == (0.5, 4)
    assert [row["outcome"] for row in score(rows, p, picture_gain=0.1)] == [
        "finding",
        "finding",
        "bad picture",
        "finding",
        "finding",
    ]
    old = [{k: v for k, v in row.items() if k != "gain"} for row in rows]  # of a run before there were gains
    assert score(old, p)[1]["outcome"] == "finding"
    assert Probe(**{k: v for k, v in old[0].items() if k in Probe.__dataclass_fields__}).gain is None


# ---- pictures that a run makes ---------------------------------------------------------------------------------------


def test_a_store_says_how_far_each_picture_moved(repository, monkeypatch, tmp_path):
    monkeypatch.chdir(repository)
    p = load_params("params/smoke.yaml", picture_check=str(save(clip, tmp_path)))
    rng, pictures = random.Random(1), Boards().pictures("audit", 12, 0)
    paints = ImageStore(pipeline_loaders(p), p)
    texts = []
    for picture in pictures:
        command = edits.draw(scene_of(picture.key), rng, "remove")
        texts.append(f"{command}\n{' | '.join(edits.check(scene_of(picture.key), command))}")
    found = make_wished(paints, pictures, ["edit"] * 11 + [""], texts)
    assert list(found) == list(range(11))
    used = {i: (wish, made, gain) for i, (wish, made, gain) in found.items() if not made.why}
    assert len(used) >= 8 and all(gain is None for _, made, gain in found.values() if made.why)
    after = [paints.picture(made.key).image for _, made, _ in used.values()]
    own = load_picture_check(p)
    wishes = [wish for wish, *_ in used.values()]
    gains = direction_gains(own, [pictures[i].image for i in used], after, wishes)
    assert [gain for *_, gain in used.values()] == gains and len(set(gains)) > 6
    without = make_wished(ImageStore(pipeline_loaders(p), replace(p, picture_check="")), pictures, ["edit"] * 12, texts)
    assert all(gain is None for *_, gain in without.values())
