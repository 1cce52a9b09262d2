"""Asking models: batches change nothing, nothing is asked twice, and what is no model is refused with a reason."""

import json
import shutil
import time
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from auditkit.data.load import load_images
from auditkit.data.source import Picture
from auditkit.errors import AuditError
from auditkit.miniature import shipped
from auditkit.models import downloads, processors, transformers
from auditkit.models.answers import AnswerBook
from auditkit.models.base import answer_questions, generate_texts
from auditkit.models.device import choose_dtype, cpu_autocast
from auditkit.models.load import load_model
from auditkit.models.offload import Parked
from auditkit.models.transformers import VLM, _cut, _write, token_probabilities
from auditkit.runs import jsonl

NAMES = ("target", "peer", "gemma3", "idefics3", "llava")
needs_weights = pytest.mark.skipif(
    not all((shipped.WEIGHTS / name).is_dir() for name in NAMES), reason="the miniature models are not built yet"
)


@pytest.fixture(scope="module")
def asked():
    """96 pictures with a question each, short and long ones mixed."""
    rows = [e for skill in load_images("miniature").benchmarks(6).values() for e in skill]
    assert len({len(e.question) for e in rows}) > 10
    return [e.image for e in rows], [e.question for e in rows]


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    return load_model(f"miniature:{request.param}", batch_size=32)


@pytest.fixture(scope="module")
def target():
    return load_model("miniature:target", batch_size=32)


@pytest.fixture
def copy(tmp_path):
    """A folder of one's own with the target in it, free to be damaged."""
    return shutil.copytree(shipped.WEIGHTS / "target", tmp_path / "mine")


def refused(folder, *words):
    with pytest.raises(AuditError) as error:
        load_model(folder)
    assert all(word in str(error.value) for word in (str(folder), *words)), str(error.value)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------------- asking


@needs_weights
def test_a_batch_of_mixed_lengths_answers_as_one_by_one_in_the_order_asked(model, asked):
    pictures, questions = asked
    together = answer_questions(model, pictures, questions)
    rows = range(0, len(questions), 5)
    assert [answer_questions(model, [pictures[i]], [questions[i]])[0] for i in rows] == [together[i] for i in rows]
    assert answer_questions(model, pictures[::-1], questions[::-1]) == together[::-1]
    assert all(text == text.strip() for text in together) and len(set(together)) > 10


@needs_weights
def test_picture_and_question_both_matter(model, asked):
    pictures, questions = asked
    answers = answer_questions(model, pictures, questions)
    assert answer_questions(model, pictures[1:] + pictures[:1], questions) != answers
    assert answer_questions(model, pictures, questions[1:] + questions[:1]) != answers


@needs_weights
def test_sampling_follows_its_seed_and_leaves_torchs_own_state_alone(target, asked):
    pictures, questions = [p[:40] for p in asked]
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    drawn = [generate_texts(target, pictures, questions, 8, temperature=3.0, seed=seed) for seed in (5, 5, 6)]
    assert torch.equal(before, torch.random.get_rng_state())
    assert drawn[0] == drawn[1] != drawn[2]
    assert generate_texts(target, pictures, questions, 8) == answer_questions(target, pictures, questions)


@needs_weights
def test_the_same_question_on_the_same_image_is_asked_once(target, asked, monkeypatch):
    seen = []
    write = _write
    monkeypatch.setattr(transformers, "_write", lambda v, i, p, *how: seen.extend(p) or write(v, i, p, *how))
    pictures, questions = [p[:3] for p in asked]
    twice = answer_questions(target, pictures * 2, questions * 2)
    assert sorted(seen) == sorted(questions) and twice[:3] == twice[3:]


@needs_weights
def test_answers_are_right_and_come_fast(target):
    """Loose bounds: a shared core must not fail the test, a padding mistake or a model loaded wrongly must."""
    begun = time.monotonic()
    load_model("miniature:target")
    assert time.monotonic() - begun < 10
    rows = [e for skill in load_images("miniature").benchmarks(12).values() for e in skill]
    begun = time.monotonic()
    said = answer_questions(target, [e.image for e in rows], [e.question for e in rows])
    assert len(rows) / (time.monotonic() - begun) > 30
    assert sum(a == e.answer for a, e in zip(said, rows, strict=True)) / len(rows) > 0.6


@needs_weights
def test_a_model_in_training_is_still_in_training_after_it_wrote(target, asked):
    target.model.train()
    answer_questions(target, asked[0][:1], asked[1][:1])
    assert target.model.training
    target.model.eval()


def test_counts_that_do_not_match_are_an_error():
    with pytest.raises(ValueError, match="1 images for 2 prompts"):
        generate_texts(VLM("none", None, None), [None], ["a?", "b?"], 8)


# --------------------------------------------------------------------------------------------------------- remembering


@needs_weights
def test_the_book_asks_only_what_it_does_not_hold(target, tmp_path, asked):
    pictures = [Picture(f"picture-{i}", image) for i, image in enumerate(asked[0][:40])]
    questions = asked[1][:40]
    book = AnswerBook(tmp_path / "answers.jsonl")
    first = book.ask(target, pictures[:30], questions[:30])
    assert (book.asked, book.known) == (30, 30) and first == answer_questions(target, asked[0][:30], questions[:30])
    again = AnswerBook(tmp_path / "answers.jsonl")
    assert again.ask(target, pictures + pictures, questions + questions)[:30] == first
    assert (again.asked, again.known) == (10, 40)
    rows = jsonl.read(tmp_path / "answers.jsonl")
    assert len(rows) == 40 and set(rows[0]) == {"model", "picture", "question", "answer"}
    other = VLM("another", target.model, target.processor)
    again.ask(other, pictures[:2], questions[:2])
    assert (again.asked, again.known) == (12, 42)


@needs_weights
def test_an_answer_that_its_limit_ended_is_marked_and_a_whole_one_is_not(model, tmp_path, asked):
    images, questions = asked[0][:24], asked[1][:24]
    whole = model.write(images, questions, 32)
    assert not any(hasattr(text, "beside") for text in whole)
    assert not any(hasattr(text, "beside") for text in model.write(images, questions, 8)), "the miniature's end in time"
    pictures = [Picture(f"picture-{i}", image) for i, image in enumerate(images)]
    book = AnswerBook(tmp_path / "answers.jsonl")
    book.ask(model, pictures, questions, 1)
    rows = jsonl.read(tmp_path / "answers.jsonl")
    assert all(row["cut"] is True for row in rows) and type(book.ask(model, pictures, questions, 1)[0]) is str


@pytest.mark.parametrize("ends", [9, [8, 9], None])
def test_only_what_is_as_long_as_it_may_be_and_has_no_end_was_cut_by_the_limit(ends):
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=ends))
    tokenizer = SimpleNamespace(eos_token_id=9)
    rows = [[1, 2, 3], [1, 2, 9], [1, 9, 0], [9, 9, 9]]
    assert _cut(model, tokenizer, torch.tensor(rows), 3) == [True, False, False, False]
    assert _cut(model, tokenizer, torch.tensor(rows), 4) == [False] * 4
    decoders = torch.tensor([[9, *row] for row in rows])  # as of an encoder-decoder that starts with its end token
    assert _cut(model, tokenizer, decoders, 3) == [True, False, False, False]


def test_a_torn_last_line_is_dropped_and_a_damaged_one_named(tmp_path):
    path = tmp_path / "answers.jsonl"
    jsonl.append(path, [{"model": "m", "picture": "p", "question": "où?", "answer": "là"}])
    with path.open("ab") as file:
        file.write('{"model": "m", "picture": "p2", "question": "où'.encode()[:-1])  # torn inside a letter
    assert AnswerBook(path).known == 1
    jsonl.append(path, [{"model": "m", "picture": "p3", "question": "où?", "answer": "ici"}])
    assert AnswerBook(path).known == 2
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(AuditError, match="answers.jsonl, line 1 is damaged"):
        AnswerBook(path)


# ------------------------------------------------------------------------------------------------------------- loading


@needs_weights
def test_names_devices_and_number_formats(copy, asked):
    assert load_model("miniature:target").name == "target"
    mine = load_model(copy, device="cpu", dtype="bfloat16")
    assert mine.name == "mine" and mine.model.dtype == torch.bfloat16
    assert len(answer_questions(mine, asked[0][:2], asked[1][:2])) == 2
    with pytest.raises(AuditError, match="float7"):
        load_model(copy, dtype="float7")


def test_a_model_that_is_nowhere_is_refused():
    with pytest.raises(AuditError, match="no such miniature model"):
        load_model("miniature:giant")
    with pytest.raises(AuditError, match="no such model"):
        load_model("./not/there")
    assert downloads.resolve("google/gemma-3-4b-it") == "google/gemma-3-4b-it"


@needs_weights
def test_a_folder_without_a_processor_is_refused(copy):
    for name in ("processor_config.json", "preprocessor_config.json"):
        (copy / name).unlink(missing_ok=True)
    refused(copy, "processor")
    for path in copy.glob("*token*"):
        path.unlink()
    refused(copy, "processor")


@needs_weights
def test_a_text_only_model_is_refused(copy):
    config = json.loads((copy / "config.json").read_text())["text_config"]
    (copy / "config.json").write_text(json.dumps(config))
    refused(copy, "does not read images")


@needs_weights
def test_missing_and_incomplete_weights_are_refused(copy):
    weights = load_file(copy / "model.safetensors")
    gone = sorted(weights)[3]
    rest = {name: tensor for name, tensor in weights.items() if name != gone}
    save_file(rest, copy / "model.safetensors", {"format": "pt"})
    refused(copy, "lacks 1 tensors")
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / "pytorch_model.bin")  # pickled weights could run code: they are never read
    refused(copy, "pytorch_model.bin", "pickle")


@needs_weights
def test_without_a_chat_template_only_paligemma_can_be_asked(copy, tmp_path, asked):
    (copy / "chat_template.jinja").unlink()
    mine = load_model(copy)
    assert processors.chat(mine, "what is it?") == "<image>answer en what is it?"
    assert answer_questions(mine, asked[0], asked[1]) == answer_questions(
        load_model("miniature:target"), asked[0], asked[1]
    )
    other = shutil.copytree(shipped.WEIGHTS / "llava", tmp_path / "other")
    (other / "chat_template.jinja").unlink()
    refused(other, "has no chat template")


@needs_weights
def test_an_adapter_is_merged_into_its_model(copy, tmp_path, asked):
    from peft import LoraConfig, get_peft_model

    base = load_model(copy)
    before = answer_questions(base, asked[0], asked[1])
    lora = get_peft_model(base.model, LoraConfig(target_modules=r".*language_model.*\.(q_proj|v_proj)", r=4))
    with torch.no_grad():
        for name, weight in lora.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    lora.save_pretrained(tmp_path / "adapter")
    wanted = answer_questions(base, asked[0], asked[1])  # peft put the adapter's layers into this very model
    named, found = load_model(copy, adapter=tmp_path / "adapter"), load_model(tmp_path / "adapter")
    assert (named.name, found.name) == ("mine+adapter", "adapter")
    assert (
        answer_questions(named, asked[0], asked[1]) == answer_questions(found, asked[0], asked[1]) == wanted != before
    )
    with pytest.raises(AuditError, match="is no adapter"):
        load_model(copy, adapter=tmp_path)
    # an adapter on top of an adapter, as in a second round of repair: twice the same is not the same as once
    once, twice = (
        m.model.state_dict() for m in (found, load_model(tmp_path / "adapter", adapter=tmp_path / "adapter"))
    )
    plain = load_model(copy).model.state_dict()
    moved = [name for name in plain if not torch.equal(plain[name], once[name])]
    assert moved
    for name in moved:
        assert torch.allclose(twice[name] - plain[name], 2 * (once[name] - plain[name]), atol=1e-5)


# ---------------------------------------------------------------------------------------- larger than the device


class Greedy:
    """A model that really asks torch for more memory than any machine has, once a batch is larger than `room`."""

    def __init__(self, room):
        self.name, self.batch_size, self.room, self.batches = "greedy", 16, room, []

    def write(self, images, prompts, max_new_tokens, temperature=0.0):
        self.batches.append(len(prompts))
        torch.empty(2**55 if len(prompts) > self.room else 1, dtype=torch.float32)
        return [f"{prompt}!" for prompt in prompts]


def test_a_batch_that_does_not_fit_is_halved_and_so_are_those_after_it(capsys, tmp_path):
    model, questions = Greedy(room=5), [f"question {i}?" for i in range(20)]
    pictures = [Picture(str(i), None) for i in range(20)]
    said = AnswerBook(tmp_path / "answers.jsonl").ask(model, pictures, questions)
    assert said == [f"{question}!" for question in questions]
    assert model.batches == [16, 8, 4, 4, 4, 4, 4] and model.batch_size == 4
    assert '"greedy": out of memory with 16 prompts at once, going on with 8.' in capsys.readouterr().out


def test_memory_that_ends_with_one_picture_is_said_and_what_was_answered_is_kept(tmp_path):
    model, book = Greedy(room=1), AnswerBook(tmp_path / "answers.jsonl")
    book.ask(model, [Picture("a", None)], ["why?"])
    model.room = 0
    with pytest.raises(AuditError, match='"greedy": out of memory with a single picture; .*bits=4.*memory: turns'):
        book.ask(model, [Picture("b", None)], ["why?"])
    assert jsonl.read(tmp_path / "answers.jsonl") == [
        {"model": "greedy", "picture": "a", "question": "why?", "answer": "why?!"}
    ]


def test_other_errors_are_no_reason_to_halve():
    model = Greedy(room=16)
    model.write = lambda *_: (_ for _ in ()).throw(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        generate_texts(model, [None] * 4, ["a?"] * 4, 8)


@needs_weights
def test_a_parked_model_is_on_the_device_only_while_it_writes_and_answers_the_same(asked):
    pictures, questions = [part[:16] for part in asked]
    model = load_model("miniature:gemma3")
    alone = answer_questions(model, pictures, questions)
    model.parked = Parked(model.model, "cpu")  # a device of its own is not at hand in every test, a copy is
    home = [tensor.data_ptr() for tensor in model.model.state_dict().values()]

    seen, generate = [], model.model.generate

    def watched(*args, **how):
        seen.append([tensor.data_ptr() for tensor in model.model.state_dict().values()])
        return generate(*args, **how)

    model.model.generate = watched
    assert answer_questions(model, pictures, questions) == alone
    assert not set(seen[0]) & set(home), "some weights were not brought"
    assert [tensor.data_ptr() for tensor in model.model.state_dict().values()] == home


@needs_weights
def test_weights_of_8_bits_are_smaller_and_answer_nearly_the_same(asked):
    pytest.importorskip("bitsandbytes", reason="needs the extra quantize: pip install auditkit[quantize]")
    full, small = load_model("miniature:gemma3"), load_model("miniature:gemma3?bits=8")
    assert (full.name, small.name) == ("gemma3", "gemma3+bits=8")
    assert small.model.get_memory_footprint() < 0.5 * full.model.get_memory_footprint()
    same = [a == b for a, b in zip(answer_questions(full, *asked), answer_questions(small, *asked), strict=True)]
    assert sum(same) / len(same) >= 0.95


@needs_weights
def test_weights_of_4_bits_are_smaller_and_think_nearly_the_same(tmp_path, asked):
    pytest.importorskip("bitsandbytes", reason="needs the extra quantize: pip install auditkit[quantize]")
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    shipped = downloads.resolve("miniature:gemma3")
    config = AutoConfig.from_pretrained(shipped)  # on a CPU bitsandbytes takes widths of whole blocks of 64 only
    for part, hidden in ((config.text_config, 64), (config.vision_config, 64)):
        part.hidden_size, part.intermediate_size, part.num_attention_heads, part.head_dim = hidden, 128, 2, 32
    config.text_config.num_key_value_heads = 2
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.05)
    model.save_pretrained(tmp_path / "wide")
    AutoProcessor.from_pretrained(shipped).save_pretrained(tmp_path / "wide")

    full, small = load_model(tmp_path / "wide"), load_model(f"{tmp_path / 'wide'}?bits=4")
    assert small.model.get_memory_footprint() < 0.7 * full.model.get_memory_footprint()
    said = [question for question in asked[1][:16]]
    pairs = [token_probabilities(m, asked[0][:16], ["what is it ?"] * 16, said) for m in (full, small)]
    logs = [torch.tensor([p for row in rows for p in row]).log() for rows in pairs]
    assert torch.corrcoef(torch.stack(logs))[0, 1] > 0.9


@needs_weights
def test_fewer_pixels_are_what_the_model_gets_to_see(asked):
    model = load_model("miniature:gemma3?max_pixels=1024")
    sizes, processor = [], model.processor

    def watched(**how):
        sizes.extend(image.size for [image] in how["images"])
        return processor(**how)

    watched.tokenizer, watched.chat_template = processor.tokenizer, processor.chat_template
    watched.apply_chat_template = processor.apply_chat_template
    model.processor = watched
    wide = Image.new("RGB", (640, 160))
    answer_questions(model, [wide, asked[0][0]], ["what is it ?", "what is it ?"])
    assert sorted(sizes) == [(32, 32), (64, 16)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(AuditError, match="device: cuda is not here: .* write auto or cpu"):
        load_model("miniature:target", device="cuda")


def test_a_number_format_that_the_gpu_lacks_is_refused(monkeypatch):
    """The rule alone: a GPU older than Ampere, as torch describes it."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert choose_dtype("auto", "cuda") == torch.float16
    with pytest.raises(AuditError, match="dtype: Tesla T4 has no bfloat16; write float16 or auto"):
        choose_dtype("bfloat16", "cuda:0")
    with pytest.raises(AuditError, match='dtype: "int4" is not known'):
        choose_dtype("int4", "cuda")


@needs_weights
def test_a_picture_of_any_size_can_be_asked_about(model):
    wide = Image.new("RGB", (200, 80), (214, 39, 40))
    assert len(answer_questions(model, [wide, wide.resize((64, 64))], ["how many objects are there?"] * 2)) == 2


@pytest.mark.parametrize(
    ("can", "kind"),
    [({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16), ({"bf16": True}, torch.bfloat16),
     ({"avx2": True, "avx512_bf16": False}, torch.float32), ({}, torch.float32)],
)  # fmt: skip
def test_a_cpu_trains_in_bfloat16_only_where_it_computes_with_it(can, kind, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    with cpu_autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == kind
