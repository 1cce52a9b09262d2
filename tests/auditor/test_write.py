"""The auditor's words become probes, or are refused."""

import pytest

from auditkit.auditor import write
from auditkit.auditor.write import auditor_prompt, propose_questions, rarest_token, write_questions, write_texts
from auditkit.data.load import load_images
from auditkit.data.source import Picture
from auditkit.errors import AuditError
from auditkit.miniature import shipped
from auditkit.models import by_image
from auditkit.models.load import load_model
from auditkit.models.transformers import VLM
from auditkit.runs.probe import Wish, parse_question, parse_wish

SHIPPED = (shipped.WEIGHTS / "auditor").is_dir()


@pytest.mark.parametrize(
    "text",
    ["what colour is the object at b3?", "How many dogs are there?", "there is a red star at b3. what shape is at c1?",
     "Whose dog's collar is blue-green?", "Où est le chat ?", "is the 2nd sign left of 10 %?"],
)  # fmt: skip
def test_questions_are_taken_as_they_are(text):
    assert parse_question(f"  {text} ") == text


@pytest.mark.parametrize(
    "text",
    ["", "?", "why?", "what colour", "red red red star is there?", "what is it?\nit is red", "what is it? where is it?",
     "what is <loc0012> at b3?", "<end_of_turn> what is this thing?", "what ��� is that?", "... ... ... ?",
     "is " + " very".join(f" {i}" for i in range(41)) + "?"],
)  # fmt: skip
def test_nonsense_is_refused(text):
    assert parse_question(text) is None


def test_decoration_is_taken_off():
    assert parse_question('**Question:** "what is  in the box?"') == "what is in the box?"


@pytest.mark.parametrize(
    "text",
    ["add a dog left of the bench\nwhere is the dog? | left of the bench",
     " Edit: **add a dog left of the bench**\n\n Check: where is the dog? | Answer: left of the bench \n",
     "Command: `add a dog left of the bench`\nQuestion: 'where is the dog?' | \"left of the bench\""],
)  # fmt: skip
def test_a_wish_is_read_whatever_decorates_it(text):
    assert parse_wish(text) == Wish("add a dog left of the bench", "where is the dog?", "left of the bench")


@pytest.mark.parametrize(
    "text",
    ["", "add a dog", "where is the dog? | there", "add a dog\nwhere is the dog?", "add a dog\nthe dog | there",
     "add a dog\nwhere is the dog? |", "add a dog\nwhere is the dog? | no | yes", "dog\nwhere is the dog? | there",
     "add a dog\nnow!\nwhere is the dog? | there", "where is it?\nwhere is the dog? | there",
     "add a dog\nwhere is it? where? | there", "add a dog\nwhere is the dog? | 1 2 3 4 5 6 7 8 9",
     "add a <loc0012> dog\nwhere is the dog? | there", "add a dog dog dog\nwhere is the dog? | there",
     "add a ��� dog\nwhere is the dog? | there", "add " + "a dog and " * 40 + "\nwhere is the dog? | there"],
)  # fmt: skip
def test_what_is_no_wish_is_refused(text):
    assert parse_wish(text) is None


def test_every_way_has_a_prompt_of_its_own():
    prompts = [auditor_prompt(way) for way in ("question", "regenerate", "edit")]
    assert len(set(prompts)) == 3 and auditor_prompt() == prompts[0]
    assert all("on the next line" in prompt.lower() for prompt in prompts)
    assert ["|" in prompt for prompt in prompts] == [False, True, True]


def test_pictures_of_different_ways_are_written_about_in_one_call(monkeypatch):
    pictures, calls = load_images("miniature").pictures("audit", 3, seed=0), []
    monkeypatch.setattr(write, "generate_texts", lambda *given: calls.append(given) or ["a", "b", "c"])
    ways = ["edit", "question", "regenerate"]
    assert write_texts(VLM("parrot", None, None), pictures, ways, 0.7, 48, 3) == ["a", "b", "c"]
    ((_, shown, prompts, *how),) = calls
    assert prompts == [auditor_prompt(way) for way in ways] and how == [48, 0.7, 3]
    assert shown == [picture.image for picture in pictures]


def speaking(monkeypatch, *texts):
    """An auditor that says the given texts in turn."""
    said = iter(texts)
    monkeypatch.setattr(write, "generate_texts", lambda v, pictures, prompts, *how: [next(said) for _ in prompts])
    return VLM("parrot", None, None)


def test_probes_keep_the_words_and_have_keys_of_their_own(monkeypatch):
    pictures = load_images("miniature").pictures("audit", 2, seed=0)
    pictures.append(pictures[0])
    probes = propose_questions(speaking(monkeypatch, " what is this? ", "blah", "where is that?"), pictures, 1.0, 48, 7)
    assert [p.question for p in probes] == ["what is this?", None, "where is that?"]
    assert [p.picture for p in probes] == [p.key for p in pictures]
    assert probes[1].text == "blah" and len({p.key for p in probes}) == 3
    assert (probes[0].way, probes[0].pairing) == ("question", "(Q*, I)")


def test_an_auditor_that_writes_only_nonsense_is_named_and_quoted(monkeypatch):
    pictures = load_images("miniature").pictures("audit", 3, seed=0)
    with pytest.raises(AuditError, match=r'"parrot" wrote no question about any of 3 pictures.*polly wants a cracker'):
        propose_questions(speaking(monkeypatch, "a", "polly wants a cracker", ""), pictures, 1.0, 48, 7)


@pytest.mark.skipif(not SHIPPED, reason="the miniature auditor is not built yet")
def test_in_a_batch_the_auditor_writes_what_it_writes_alone():
    pictures = load_images("miniature").pictures("audit", 12, seed=6)
    model = load_model("miniature:auditor")
    together = propose_questions(model, pictures, 0.0, 48, seed=None)
    alone = [propose_questions(model, [picture], 0.0, 48, seed=None)[0] for picture in pictures]
    assert [p.text for p in together] == [p.text for p in alone]


@pytest.mark.skipif(not SHIPPED, reason="the miniature auditor is not built yet")
def test_the_shipped_auditor_writes_questions_about_its_pictures():
    source = load_images("miniature")
    probes = propose_questions(load_model("miniature:auditor"), source.pictures("audit", 128, seed=5), 1.0, 48, 5)
    parsed = [p for p in probes if p.question]
    assert len(parsed) >= 0.95 * len(probes)
    assert sum(source.truth(p.picture, p.question) is not None for p in parsed) >= 0.9 * len(probes)
    assert len({p.question for p in parsed}) > 60


@pytest.mark.skipif(not SHIPPED, reason="the miniature auditor is not built yet")
def test_what_is_no_question_has_a_word_the_untrained_auditor_would_not_write():
    pictures = load_images("miniature").pictures("audit", 5, seed=5)
    shipped = load_model("miniature:auditor")
    texts = ["none b2\nwhat shape is the same colour?", "mumble", "night\nhow many dogs have the shape?"]
    false, none, other = rarest_token(shipped, pictures[:3], texts)
    assert none is None and max(false, other) < 1e-3
    own = write_questions(shipped, pictures, 0.0, 48, None)
    assert min(rarest_token(shipped, pictures, [probe.text for probe in own])) > 1e-2


@pytest.mark.skipif(not SHIPPED, reason="the miniature auditor is not built yet")
def test_a_wish_is_weighed_as_a_whole_and_a_question_as_without_ways():
    pictures = load_images("miniature").pictures("audit", 4, seed=5)
    shipped = load_model("miniature:auditor")
    ways = ["edit", "question", "regenerate", "edit"]
    texts = write_texts(shipped, pictures, ways, 0.0, 48, None)
    texts[3] = "what is it?"  # a question where a wish was asked for
    edit, question, caption, none = rarest_token(shipped, pictures, texts, ways)
    assert none is None and min(edit, caption) > 1e-3  # its own greedy words
    assert question == pytest.approx(rarest_token(shipped, pictures[1:2], texts[1:2])[0], rel=1e-3)
    first, check = texts[0].split("\n")
    unlikely = f"{first.replace(' at ', ' dog ')}\n{check}"
    assert parse_wish(unlikely) and rarest_token(shipped, pictures[:1], [unlikely], ["edit"])[0] < 1e-3


def test_a_photograph_that_several_texts_are_about_is_read_once_and_shared(monkeypatch):
    board, reads = load_images("miniature").pictures("audit", 1, 0)[0].image, []

    def read():
        reads.append(1)
        return board.copy()

    photograph, begun, begin = Picture("photo", read), [], by_image._begin
    monkeypatch.setattr(by_image, "_begin", lambda *rows: begun.append(len(rows[1])) or begin(*rows))
    auditor = load_model("miniature:auditor", device="cpu")
    texts = [f"what is in cell {place}?" for place in ("a1", "b2", "c3")]
    together = rarest_token(auditor, [photograph] * 3, texts)
    assert len(reads) == 1 and begun[-1] == 3
    assert together == pytest.approx([rarest_token(auditor, [photograph], [text])[0] for text in texts], rel=1e-3)
