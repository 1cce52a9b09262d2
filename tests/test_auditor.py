"""The auditor's words become probes, or are refused."""

import pytest

from auditkit import auditor, images, vlm
from auditkit.errors import AuditError

SHIPPED = (vlm.WEIGHTS / "auditor").is_dir()


@pytest.mark.parametrize(
    "text",
    ["what colour is the object at b3?", "How many dogs are there?", "there is a red star at b3. what shape is at c1?",
     "Whose dog's collar is blue-green?", "Où est le chat ?", "is the 2nd sign left of 10 %?"],
)  # fmt: skip
def test_questions_are_taken_as_they_are(text):
    assert auditor.parse(f"  {text} ") == text


@pytest.mark.parametrize(
    "text",
    ["", "?", "why?", "what colour", "red red red star is there?", "what is it?\nit is red", "what is it? where is it?",
     "what is <loc0012> at b3?", "<end_of_turn> what is this thing?", "what ��� is that?", "... ... ... ?",
     "is " + " very".join(f" {i}" for i in range(41)) + "?"],
)  # fmt: skip
def test_nonsense_is_refused(text):
    assert auditor.parse(text) is None


def test_decoration_is_taken_off():
    assert auditor.parse('**Question:** "what is  in the box?"') == "what is in the box?"


def speaking(monkeypatch, *texts):
    """An auditor that says the given texts in turn."""
    said = iter(texts)
    monkeypatch.setattr(vlm, "generate", lambda v, pictures, prompts, *how: [next(said) for _ in prompts])
    return vlm.VLM("parrot", None, None)


def test_probes_keep_the_words_and_have_keys_of_their_own(monkeypatch):
    pictures = images.load("miniature").pictures("audit", 2, seed=0)
    pictures.append(pictures[0])
    probes = auditor.propose(speaking(monkeypatch, " what is this? ", "blah", "where is that?"), pictures, 1.0, 48, 7)
    assert [p.question for p in probes] == ["what is this?", None, "where is that?"]
    assert [p.picture for p in probes] == [p.key for p in pictures]
    assert probes[1].text == "blah" and len({p.key for p in probes}) == 3
    assert (probes[0].way, probes[0].pairing) == ("question", "(Q*, I)")


def test_an_auditor_that_writes_only_nonsense_is_named_and_quoted(monkeypatch):
    pictures = images.load("miniature").pictures("audit", 3, seed=0)
    with pytest.raises(AuditError, match=r'"parrot" wrote no question about any of 3 pictures.*polly wants a cracker'):
        auditor.propose(speaking(monkeypatch, "a", "polly wants a cracker", ""), pictures, 1.0, 48, 7)


@pytest.mark.skipif(not SHIPPED, reason="the miniature auditor is not built yet")
def test_in_a_batch_the_auditor_writes_what_it_writes_alone():
    pictures = images.load("miniature").pictures("audit", 12, seed=6)
    model = vlm.load("miniature:auditor")
    together = auditor.propose(model, pictures, 0.0, 48, seed=None)
    alone = [auditor.propose(model, [picture], 0.0, 48, seed=None)[0] for picture in pictures]
    assert [p.text for p in together] == [p.text for p in alone]


@pytest.mark.skipif(not SHIPPED, reason="the miniature auditor is not built yet")
def test_the_shipped_auditor_writes_questions_about_its_pictures():
    source = images.load("miniature")
    probes = auditor.propose(vlm.load("miniature:auditor"), source.pictures("audit", 128, seed=5), 1.0, 48, 5)
    parsed = [p for p in probes if p.question]
    assert len(parsed) >= 0.95 * len(probes)
    assert sum(source.truth(p.picture, p.question) is not None for p in parsed) >= 0.9 * len(probes)
    assert len({p.question for p in parsed}) > 60


@pytest.mark.skipif(not SHIPPED, reason="the miniature auditor is not built yet")
def test_what_is_no_question_has_a_word_the_untrained_auditor_would_not_write():
    pictures = images.load("miniature").pictures("audit", 5, seed=5)
    shipped = vlm.load("miniature:auditor")
    texts = ["none b2\nwhat shape is the same colour?", "mumble", "night\nhow many dogs have the shape?"]
    false, none, other = auditor.rarest(shipped, pictures[:3], texts)
    assert none is None and max(false, other) < 1e-3
    own = auditor.write(shipped, pictures, 0.0, 48, None)
    assert min(auditor.rarest(shipped, pictures, [probe.text for probe in own])) > 1e-2
