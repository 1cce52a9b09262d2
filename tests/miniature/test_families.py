"""Each family is a real model: loaded through the Auto classes, it does what its training batches say it does."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from auditkit.errors import AuditError
from auditkit.miniature import families

CELLS = [column + row for column in "abcd" for row in "1234"]
WORDS = "what colour is the object at how many striped objects are there red star purple 2 yes no".split() + CELLS
QUESTIONS = ["what colour is the object at b3?", "is there a red star?", "how many striped objects are there at d1?"]
ANSWERS = ["purple", "yes", "2"]


@pytest.fixture(scope="module", params=list(families.FAMILIES))
def built(request, tmp_path_factory):
    """(family, model, processor) after a round trip through save_pretrained and the Auto classes."""
    folder = tmp_path_factory.mktemp(request.param)
    model, processor = families.build(request.param, "small", WORDS, QUESTIONS * 9, seed=1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    loaded = AutoModelForImageTextToText.from_pretrained(folder).eval()
    assert type(loaded) is type(model)
    for key, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key
    return request.param, loaded, AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


def chat(*turns):
    """Messages of user and assistant in turn, the image in the first."""
    messages = []
    for i, text in enumerate(turns):
        image = [{"type": "image"}] if i == 0 else []
        messages.append({"role": ["user", "assistant"][i % 2], "content": [*image, {"type": "text", "text": text}]})
    return messages


def prompts(processor, images, questions=QUESTIONS):
    """The processor's own batch for generation."""
    text = [processor.apply_chat_template(chat(q), add_generation_prompt=True) for q in questions]
    pictures = [[Image.fromarray(i)] for i in images]
    return processor(text=text, images=pictures, padding=True, return_tensors="pt")


def test_every_word_is_one_token_and_text_comes_back(built):
    tok = built[2].tokenizer
    for word in [*WORDS, "?", ".", ",", "\n", "\n\n\n"]:
        assert len(tok(word, add_special_tokens=False).input_ids) == 1, word
        if word.strip():
            assert len(tok(" " + word, add_special_tokens=False).input_ids) == 1, word
    for text in [*QUESTIONS, "a wombat, über-striped?\n\nb33 (b3) ...", "  two  spaces "]:
        assert tok.decode(tok(text, add_special_tokens=False).input_ids) == text
    assert len(tok(QUESTIONS[0], add_special_tokens=False).input_ids) == 8


def test_encode_gives_what_the_processor_gives(built, images):
    family, _, processor = built
    for question, answer, image in zip(QUESTIONS, ANSWERS, images, strict=True):
        wanted = prompts(processor, image[None], [question])
        ours = families.encode(processor, [[(question, answer)]], image[None])
        n = wanted["input_ids"].shape[1]
        assert torch.equal(ours["input_ids"][:, :n], wanted["input_ids"])
        assert torch.allclose(ours["pixel_values"], wanted["pixel_values"], atol=1e-6)
        for key in ("token_type_ids", "pixel_attention_mask"):
            assert (key in ours) == (key in wanted), key
            if key in ours:
                assert torch.equal(ours[key].flatten()[: wanted[key].numel()], wanted[key].flatten()), key
        kept = ours["labels"][0] != -100
        assert processor.tokenizer.decode(ours["labels"][0][kept]) == answer + families.FAMILIES[family].end
        assert kept.nonzero().flatten().tolist() == list(range(n, ours["input_ids"].shape[1]))


def test_text_of_is_the_chat_template_expanded(built, images):
    family, _, processor = built
    turns = list(zip(QUESTIONS, ANSWERS, strict=True))
    for k in (1, 3):
        ids = processor.tokenizer(families.text_of(processor, turns[:k]), add_special_tokens=False)["input_ids"]
        assert ids == families.encode(processor, [turns[:k]], images[:1])["input_ids"][0].tolist()
        text = processor.apply_chat_template(chat(*[t for turn in turns[:k] for t in turn]))
        if family == "paligemma2":  # its processor ends every text with a newline, after an answer too
            ids = ids + processor.tokenizer("\n", add_special_tokens=False)["input_ids"]
        batch = processor(text=[text], images=[[Image.fromarray(images[0])]], return_tensors="pt")
        assert batch["input_ids"][0].tolist() == ids


def test_paligemma_suffix_is_the_same_batch(images):
    _, processor = families.build("paligemma2", "small", WORDS, QUESTIONS, seed=0)
    text = processor.apply_chat_template(chat(QUESTIONS[0]), add_generation_prompt=True)
    theirs = processor(text=[text], images=[[Image.fromarray(images[0])]], suffix=["purple"], return_tensors="pt")
    ours = families.encode(processor, [[(QUESTIONS[0], "purple")]], images[:1])
    for key in ("input_ids", "token_type_ids", "labels", "attention_mask"):
        assert torch.equal(ours[key], theirs[key]), key


def test_training_and_generation_see_the_same(built, images):
    """Teacher-forced logits of a mixed right-padded batch = generate's own on a left-padded one, step after step."""
    _, model, processor = built
    steps = model.generate(
        **prompts(processor, images), max_new_tokens=3, output_logits=True, return_dict_in_generate=True
    )
    tokens = steps.sequences[:, -len(steps.logits) :]
    batch = families.encode(processor, [[(q, "")] for q in QUESTIONS], images)
    rows = [row[mask == 1][:-1] for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    longest = max(map(len, rows)) + 2
    wider = {k: v for k, v in batch.items() if k != "labels"}
    for key, fill in (("input_ids", processor.tokenizer.pad_token_id), ("attention_mask", 0), ("token_type_ids", 0)):
        if key in batch:
            wider[key] = torch.full((len(rows), longest), fill)
            wider[key][:, : batch[key].shape[1]] = batch[key]
    for i, row in enumerate(rows):  # put the tokens that were generated where the answer stands
        wider["input_ids"][i, len(row) : len(row) + 2] = tokens[i, :2]
        wider["attention_mask"][i, len(row) : len(row) + 2] = 1
        if model.config.model_type == "paligemma":
            wider["token_type_ids"][i, len(row) : len(row) + 2] = 1
    with torch.no_grad():
        logits = model(**wider).logits
    for step in range(3):
        for i, row in enumerate(rows):
            assert torch.allclose(logits[i, len(row) - 1 + step], steps.logits[step][i], atol=1e-4), (step, i)


def test_image_and_question_change_the_answer(built, images):
    _, model, processor = built

    def first(image, question):
        batch = prompts(processor, image[None], [question])
        batch.pop("labels", None)
        with torch.no_grad():
            return model(**batch).logits[0, -1]

    base = first(images[0], QUESTIONS[0])
    assert (base - first(images[1], QUESTIONS[0])).abs().max() > 1e-3
    assert (base - first(images[0], QUESTIONS[0].replace("b3", "c2"))).abs().max() > 1e-3


def test_end_token_ends_generation(built, images):
    """Fitted to answer "yes" to anything for a few steps, a model stops after it, and decodes to the bare word."""
    family, _, processor = built
    model, _ = families.build(family, "small", WORDS, QUESTIONS * 9, seed=1)
    batch = families.encode(processor, [[(q, "yes")] for q in QUESTIONS], images)
    optimiser = torch.optim.AdamW(model.train().parameters(), lr=2e-3)
    for _ in range(30):
        value, correct = families.loss(model, batch)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    assert correct.all() and value < 0.2
    inputs = prompts(processor, images)
    out = model.eval().generate(**inputs, max_new_tokens=8)[:, inputs["input_ids"].shape[1] :]
    assert out.shape[1] == 2
    assert processor.batch_decode(out, skip_special_tokens=True) == ["yes"] * 3


def test_loss_is_the_models_own_and_counts_answers(built, images):
    _, model, processor = built
    chats = [list(zip(QUESTIONS, ANSWERS, strict=True)), [(QUESTIONS[1], "no")], [(QUESTIONS[2], "red star")]]
    batch = families.encode(processor, chats, images)
    with torch.no_grad():
        value, correct = families.loss(model, batch)
        assert torch.allclose(value, model(**batch).loss, atol=1e-5)
        index = families.answer_index(batch["labels"])
        assert index.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4] and len(correct) == 11
        assert torch.allclose(families.loss(model, batch, families.states(model, batch))[0], value)
        features = families.vision_features(model, batch["pixel_values"])
    assert features.shape == (3, 16, 96)


def test_isolated_turns_are_single_questions(built, images):
    """A pack read in one pass gives each question the logits it has when it stands alone."""
    family, model, processor = built
    turns = list(zip(QUESTIONS, ANSWERS, strict=True))
    with torch.no_grad():
        packed, hits = families.loss(model, families.encode(processor, [turns, turns[:2]], images[:2], isolated=True))
        singles = [[turns[0]], [turns[1]], [turns[2]], [turns[0]], [turns[1]]]
        alone, also = families.loss(model, families.encode(processor, singles, images[[0, 0, 0, 1, 1]]))
    if family != "paligemma2":  # its image tokens see the question, of which there are several in a pack
        assert torch.allclose(packed, alone, atol=1e-5) and torch.equal(hits, also)


def test_vision_features_are_row_major_cells(built):
    """A change inside one cell changes that cell's patch embedding most."""
    _, model, processor = built
    image = np.full((1, 64, 64, 3), 90, dtype=np.uint8)
    other = image.copy()
    other[0, 16:32, 32:48] = 200  # row 1, column 2
    with torch.no_grad():
        a, b = (
            families.vision_features(model, families.encode(processor, [[("a", "b")]], x)["pixel_values"])
            for x in (image, other)
        )
    assert (a - b).norm(dim=-1).argmax().item() == 1 * 4 + 2


def test_wrong_names_are_told():
    with pytest.raises(AuditError, match="gemma9.*paligemma2"):
        families.build("gemma9", "small", WORDS, QUESTIONS, 0)
    with pytest.raises(AuditError, match="one token"):
        families.tokenizer(["red star"], QUESTIONS)
