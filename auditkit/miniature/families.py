"""Four small vision-language models of the real transformers classes: tokenizer, processor, model, training batch.

Nothing here is a stand-in. Each family is built from its own configuration, saved with save_pretrained and loaded with
AutoModelForImageTextToText / AutoProcessor like a model from the hub; it is only small enough to train on one core.

What makes so small a model learn at all (measured):
1) one patch of the vision tower is one cell of the board, and one image token is one patch: 64 px / 16 px = 4 x 4 = 16;
2) the vision tower's position embeddings start with std 1, the text embeddings with std width^-0.5;
3) every word of the world, a position such as "b3" too, is one token.
"""

import json
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers as hf
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

from auditkit.errors import AuditError

IMAGE, PATCH = 64, 16  # pixels
CELLS = (IMAGE // PATCH) ** 2  # image tokens, row by row from the top left
MERGES = 64  # learnt pieces for words outside the list; the words themselves need none


@dataclass(frozen=True)
class Size:
    """Widths and depths; four heads everywhere, MLPs four times as wide as the model."""

    text: int
    layers: int
    vision: int
    vision_layers: int


SIZES = {
    "tiny": Size(64, 3, 96, 2),
    "small": Size(96, 3, 96, 2),
    "medium": Size(96, 4, 96, 2),
    "large": Size(96, 5, 96, 2),
}


@dataclass(frozen=True)
class Family:
    """How one family writes a chat, image tokens expanded: opening q ask a end (again q ask a end)*.

    opening ends, and again begins, where the tokenizer splits anyway, so their ids can be put together in pieces.
    """

    opening: str  # from the start, through the image, up to the first question
    again: str  # between an answer's end token and the next question
    ask: str  # between a question and its answer
    end: str  # the token that ends an answer
    tokens: dict[str, str]  # special tokens by the attribute name under which the processor looks for them
    template: str  # the same chat as a Jinja template, image as the processor's placeholder
    lead: str = ""  # before every question


# One message's parts; `content` may be a string or the list of parts that transformers uses for images.
_TEXT = (
    "{%- if m.content is string -%}{{- m.content -}}{%- else -%}"
    "{%- for c in m.content if c.type == 'text' -%}{{- c.text -}}{%- endfor -%}{%- endif -%}"
)


def _image(placeholder: str) -> str:
    return (
        "{%- if m.content is not string -%}{%- for c in m.content if c.type == 'image' -%}"
        f"{{{{- {placeholder!r} -}}}}{{%- endfor -%}}{{%- endif -%}}"
    )


def _template(start: str, user: str, ask: str, end: str, again: str, prompt: str | None = None) -> str:
    """A chat template from the pieces of a turn; the generation prompt is what stands between question and answer."""
    prompt = ask if prompt is None else prompt
    return (
        f"{{{{- {start!r} -}}}}{{%- for m in messages -%}}{{%- if m.role == 'assistant' -%}}"
        f"{{{{- {ask!r} -}}}}{_TEXT}{{{{- {end!r} -}}}}"
        f"{{%- else -%}}{{%- if not loop.first -%}}{{{{- {again!r} -}}}}{{%- endif -%}}{user}{{%- endif -%}}"
        f"{{%- endfor -%}}{{%- if add_generation_prompt -%}}{{{{- {prompt!r} -}}}}{{%- endif -%}}"
    )


def _families() -> dict[str, Family]:
    turn, model = "<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"
    boi, eoi, soft = "<start_of_image>", "<end_of_image>", "<image_soft_token>"
    fake, utterance, cell = "<fake_token_around_image>", "<end_of_utterance>", "<image>"
    return {
        # hf.PaliGemmaProcessor itself puts bos after the image and "\n" after the text, so the template must not.
        "paligemma2": Family(
            opening=cell * CELLS + "<bos>answer en",
            again="answer en",
            lead=" ",
            ask="\n",
            end="<eos>",
            tokens={"image_token": cell},
            template=_template("", _image(cell) + "{{- 'answer en ' -}}" + _TEXT, "\n", "<eos>", "", prompt=""),
        ),
        "gemma3": Family(
            opening=f"<bos>{turn}\n\n{boi}{soft * CELLS}{eoi}\n\n",
            again="\n" + turn,
            ask=model,
            end="<end_of_turn>",
            tokens={
                "image_token": soft,
                "boi_token": boi,
                "eoi_token": eoi,
                "sot_token": "<start_of_turn>",
                "eot_token": "<end_of_turn>",
            },
            template=_template("<bos>", f"{{{{- {turn!r} -}}}}" + _image(boi) + _TEXT, model, "<end_of_turn>", "\n"),
        ),
        "idefics3": Family(
            opening=f"<bos>User:{fake}<global-img>{cell * CELLS}{fake}",
            again="\nUser:",
            ask=f"{utterance}\nAssistant:\n",
            end=utterance,
            tokens={
                "image_token": cell,
                "fake_image_token": fake,
                "global_image_token": "<global-img>",
                "end_of_utterance_token": utterance,
            },
            template=_template(
                "<bos>", "{{- 'User:' -}}" + _image(cell) + _TEXT, f"{utterance}\nAssistant:\n", utterance, "\n"
            ),
        ),
        "llava": Family(
            opening=f"<bos>USER:{cell * CELLS}\n",
            again="USER:\n",
            ask=" ASSISTANT:\n",
            end="<eos>",
            tokens={"image_token": cell},
            template=_template(
                "<bos>", "{{- 'USER:' -}}" + _image(cell) + "{{- '\\n' -}}" + _TEXT, " ASSISTANT:\n", "<eos>", ""
            ),
        ),
    }


FAMILIES = _families()
# The words of the templates themselves, and punctuation.
_FRAME = "user model User Assistant USER ASSISTANT answer en ? . , : \n \n\n \n\n\n".split(" ")


def tokenizer(words: Iterable[str], corpus: Iterable[str], family: str = "gemma3") -> hf.PreTrainedTokenizerFast:
    """Train a byte-level BPE in which every word of `words` is one token, with and without a space before it.

    The merges are learnt from `corpus`; a word of the list is looked up whole before any merge is tried
    (`ignore_merges`, as in Llama 3), so the vocabulary holds no half words;
    other text falls back to pieces and bytes. Raises AuditError for a word that the splitting would cut.
    """
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n+| ?[\p{L}\p{N}]+| ?[^\s\p{L}\p{N}]|\s"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = split
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learnt.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=len(alphabet) + MERGES, initial_alphabet=alphabet, show_progress=False)
    )
    model = json.loads(learnt.to_str())["model"]
    vocab = {token: i for i, token in enumerate(alphabet)}
    for token in model["vocab"]:
        vocab.setdefault(token, len(vocab))
    for word in [*_FRAME, *sorted(set(words))]:
        for form in (word, " " + word) if word.strip() else (word,):
            pieces = split.pre_tokenize_str(form)
            if len(pieces) != 1:
                raise AuditError(f"the word {word!r} cannot be one token: letters and digits only, or one sign")
            vocab.setdefault(pieces[0][0], len(vocab))
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(m) for m in model["merges"]], ignore_merges=True))
    bpe.pre_tokenizer = split
    bpe.decoder = decoders.ByteLevel()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        extra_special_tokens=FAMILIES[family].tokens,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _processor(family: str, tok: hf.PreTrainedTokenizerFast):
    square, template = {"height": IMAGE, "width": IMAGE}, FAMILIES[family].template
    if family == "paligemma2":
        images = hf.SiglipImageProcessorPil(size=square)
        images.image_seq_length = CELLS
        return hf.PaliGemmaProcessor(images, tok, chat_template=template)
    if family == "gemma3":
        return hf.Gemma3Processor(
            hf.Gemma3ImageProcessorPil(size=square, do_pan_and_scan=False),
            tok,
            chat_template=template,
            image_seq_length=CELLS,
        )
    if family == "idefics3":
        edge = {"longest_edge": IMAGE}
        images = hf.Idefics3ImageProcessorPil(size=edge, max_image_size=edge, do_image_splitting=False)
        return hf.Idefics3Processor(images, tok, image_seq_len=CELLS, chat_template=template)
    images = hf.CLIPImageProcessorPil(size={"shortest_edge": IMAGE}, crop_size=square)
    # CLIP's class token counts as an additional image token, and the "default" strategy drops it again.
    return hf.LlavaProcessor(
        images,
        tok,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )


def _model(family: str, size: Size, tok: hf.PreTrainedTokenizerFast) -> nn.Module:
    ids = {"pad_token_id": tok.pad_token_id, "bos_token_id": tok.bos_token_id, "eos_token_id": tok.eos_token_id}
    text = dict(
        vocab_size=len(tok),
        hidden_size=size.text,
        intermediate_size=4 * size.text,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=size.text // 4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        **ids,
    )
    gemma = dict(
        query_pre_attn_scalar=size.text // 4,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        layer_types=["full_attention"] * size.layers,
    )
    vision = dict(
        hidden_size=size.vision,
        intermediate_size=4 * size.vision,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=4,
        image_size=IMAGE,
        patch_size=PATCH,
    )
    siglip, image = hf.SiglipVisionConfig(**vision, vision_use_head=False), tok.image_token_id
    if family == "paligemma2":
        return hf.PaliGemmaForConditionalGeneration(
            hf.PaliGemmaConfig(
                text_config=hf.Gemma2Config(**text, **gemma),
                vision_config=siglip,
                image_token_index=image,
                projection_dim=size.text,
                hidden_size=size.text,
                vocab_size=len(tok),
                **ids,
            )
        )
    if family == "gemma3":
        return hf.Gemma3ForConditionalGeneration(
            hf.Gemma3Config(
                text_config=hf.Gemma3TextConfig(**text, **gemma),
                vision_config=siglip,
                mm_tokens_per_image=CELLS,
                image_token_index=image,
                boi_token_index=tok.boi_token_id,
                eoi_token_index=tok.eoi_token_id,
                **ids,
            )
        )
    if family == "idefics3":
        return hf.Idefics3ForConditionalGeneration(
            hf.Idefics3Config(
                text_config=hf.LlamaConfig(**text),
                vision_config=vision,
                image_token_id=image,
                scale_factor=1,
                tie_word_embeddings=True,
                **ids,
            )
        )
    return hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(
            text_config=hf.LlamaConfig(**text),
            vision_config=hf.CLIPVisionConfig(**vision),
            image_token_index=image,
            image_seq_length=CELLS,
            vision_feature_layer=-1,
            tie_word_embeddings=True,
            **ids,
        )
    )


def _initialise(model: nn.Module, width: int) -> None:
    """Start so that a model this narrow sees places and words apart from the first step on."""
    for name, parameter in model.named_parameters():
        if "position_embedding" in name:
            nn.init.normal_(parameter, std=1.0)
        elif "embed_tokens" in name:
            # Gemma multiplies by sqrt(width) on the way in: inputs of std 1. The tied head has logits of std 1.
            nn.init.normal_(parameter, std=width**-0.5)
        elif "mm_input_projection_weight" in name:
            nn.init.normal_(parameter, std=0.05)  # transformers starts it at exactly 0: training would explode
        elif parameter.dim() == 2 and "class_embedding" not in name:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)  # 0.02 suits widths of thousands, not of 96


def build(family: str, size: str, tok_words: Iterable[str], corpus: Iterable[str], seed: int) -> tuple[Any, Any]:
    """A model of `family` ("paligemma2", "gemma3", "idefics3", "llava") with random weights, and its processor.

    Raises AuditError for an unknown family or size.
    """
    if family not in FAMILIES or size not in SIZES:
        raise AuditError(f"no miniature {family!r} of size {size!r}: choose one of {list(FAMILIES)}, {list(SIZES)}")
    processor = _processor(family, tokenizer(tok_words, corpus, family))
    tok = processor.tokenizer  # PaliGemma's processor has added its <loc> and <seg> tokens by now
    torch.manual_seed(seed)
    model = _model(family, SIZES[size], tok)
    _initialise(model, SIZES[size].text)
    ends = dict.fromkeys([tok.eos_token_id, tok.convert_tokens_to_ids(FAMILIES[family].end)])
    model.generation_config = hf.GenerationConfig(
        do_sample=False, bos_token_id=tok.bos_token_id, pad_token_id=tok.pad_token_id, eos_token_id=list(ends)
    )
    return model.eval(), processor


def family_of(processor: Any) -> Family:
    """The family a processor belongs to, by its class."""
    classes = {hf.PaliGemmaProcessor: "paligemma2", hf.Gemma3Processor: "gemma3", hf.Idefics3Processor: "idefics3"}
    return FAMILIES[classes.get(type(processor), "llava")]


def _pieces(family: Family, turns: Sequence[tuple[str, str]], isolated: bool = False) -> list[str]:
    """The chat as text in pieces: opening, then prompt, answer, prompt, answer, ..."""
    pieces = [family.opening]
    for i, (question, answer) in enumerate(turns):
        again = family.again if i and not isolated else ""
        pieces += [again + family.lead + question + family.ask, answer + family.end]
    return pieces


def text_of(processor: Any, turns: Sequence[tuple[str, str]]) -> str:
    """A chat of (question, answer) turns on one image as the fully expanded text that the model is trained on."""
    return "".join(_pieces(family_of(processor), turns))


_IDS = weakref.WeakKeyDictionary()  # tokenizer -> {piece: token ids}; a world's questions come again and again


def _ids(tok, pieces: list[str]) -> dict[str, list[int]]:
    known = _IDS.setdefault(tok, {})
    if len(known) > 200_000:
        known.clear()
    new = [p for p in dict.fromkeys(pieces) if p not in known]
    if new:
        known.update(zip(new, tok(new, add_special_tokens=False)["input_ids"], strict=True))
    return known


def pixels(processor: Any, images: np.ndarray) -> torch.Tensor:
    """Normalise uint8 images [B, 64, 64, 3] as the image processor would: float32 [B, 3, 64, 64]."""
    p = processor.image_processor
    mean, std = torch.tensor(p.image_mean).view(3, 1, 1), torch.tensor(p.image_std).view(3, 1, 1)
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).to(torch.float32)
    return ((x * p.rescale_factor - mean) / std).contiguous()


def encode(
    processor: Any, chats: Sequence[Sequence[tuple[str, str]]], images: np.ndarray, isolated: bool = False
) -> dict[str, torch.Tensor]:
    """A right-padded training batch of chats, one image each.

    chats: per image a pack of independent (question, answer) turns; images: uint8 [B, 64, 64, 3].
    isolated: False, each chat is one conversation. True, every turn stands directly behind the opening and sees nothing
    of the other turns, so the forward pass is that of the single-question prompts, but reads each image once. (Exactly
    so for the causal families; in PaliGemma the image would also see the question.)
    Returns input_ids, labels [B, T] (-100 but on answers and the token that ends each), attention_mask ([B, T], or
    [B, 1, T, T] with position_ids if isolated), pixel_values, and token_type_ids / pixel_attention_mask if wanted.
    """
    family, tok = family_of(processor), processor.tokenizer
    texts = [_pieces(family, turns, isolated) for turns in chats]
    known = _ids(tok, [piece for row in texts for piece in row])
    rows = [[known[piece] for piece in row] for row in texts]
    shape = len(rows), max(sum(map(len, row)) for row in rows)
    ids, labels = np.full(shape, tok.pad_token_id), np.full(shape, -100)
    turn = np.full(shape, -1)  # 0 the opening, k the k-th turn, -1 padding
    position = np.zeros(shape, dtype=np.int64)
    for i, row in enumerate(rows):
        at = start = 0  # start: the position at which a piece would stand if it had no other turn before it
        for j, piece in enumerate(row):
            here = slice(at, at + len(piece))
            ids[i, here], turn[i, here] = piece, (j + 1) // 2
            position[i, here] = start + np.arange(len(piece))
            is_answer = j > 0 and j % 2 == 0
            if is_answer:
                labels[i, here] = piece
            start = len(row[0]) if is_answer else start + len(piece)
            at += len(piece)
    batch = {"input_ids": ids, "labels": labels, "attention_mask": (turn >= 0).astype(np.int64)}
    both = np.zeros(shape, dtype=bool)  # tokens that see each other in both directions
    if isinstance(processor, hf.Gemma3Processor):
        both = ids == tok.image_token_id
        batch["token_type_ids"] = both.astype(np.int64)
    elif isinstance(processor, hf.PaliGemmaProcessor):
        # A single question is prefix as a whole. In a conversation no question may look ahead at the answers.
        alone = isolated | (np.array([len(row) for row in rows]) == 3)[:, None]
        both = (turn >= 0) & np.where(alone, labels == -100, np.arange(shape[1]) < CELLS + 1)
        batch["token_type_ids"] = ((turn >= 0) & ~both).astype(np.int64)
    if isolated:
        batch.pop("token_type_ids", None)
        batch["position_ids"] = position
        same = turn[:, :, None] == turn[:, None]
        seen = (same | (turn[:, None] == 0)) & np.tri(shape[1], dtype=bool) | same & both[:, :, None] & both[:, None]
        batch["attention_mask"] = np.where(seen, np.float32(0), np.finfo(np.float32).min)[:, None]
    tensors = {key: torch.from_numpy(value) for key, value in batch.items()}
    tensors["pixel_values"] = pixels(processor, images)
    if isinstance(processor, hf.Idefics3Processor):
        tensors["pixel_values"] = tensors["pixel_values"][:, None]
        tensors["pixel_attention_mask"] = torch.ones((len(rows), 1, IMAGE, IMAGE), dtype=torch.int64)
    return tensors


def can_isolate(processor: Any) -> bool:
    """Whether packing questions with `encode(isolated=True)` is exact for this family: in PaliGemma images see the
    question.
    """
    return not isinstance(processor, hf.PaliGemmaProcessor)


def text_model(model: Any) -> Any:
    """The text part of a vision-language model."""
    return model.model.text_model if hasattr(model.model, "text_model") else model.model.language_model


def answer_index(labels: torch.Tensor) -> torch.Tensor:
    """For each answer token of `labels` [B, T], in order, which answer of the batch it belongs to: [n_answer_tokens].

    Answers are counted over all turns of all chats, so index k is the k-th (question, answer) pair put into encode().
    """
    answer = labels != -100
    first = answer & ~nn.functional.pad(answer, (1, 0))[:, :-1]
    return (first.flatten().cumsum(0) - 1)[answer.flatten()]


def states(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The text part's last states from which the answer tokens of a batch are predicted: [n_answer_tokens, width]."""
    hidden = model.model(**{k: v for k, v in batch.items() if k != "labels"}, use_cache=False).last_hidden_state
    return hidden[:, :-1][batch["labels"][:, 1:] != -100]


def loss(
    model: Any, batch: dict[str, torch.Tensor], found: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy over the answer tokens of a batch from encode(); the head is applied at those positions alone.

    found: what `states` gave, if it was called before. Returns (mean, correct [n_answer_tokens] bool).
    """
    logits = model.lm_head(states(model, batch) if found is None else found)
    wanted = batch["labels"][:, 1:][batch["labels"][:, 1:] != -100]
    return nn.functional.cross_entropy(logits, wanted), logits.argmax(-1) == wanted


def vision_features(model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """What the vision tower says of each cell, before the projector: [B, 16, width], row by row."""
    return model.model.get_image_features(pixel_values).last_hidden_state[:, -CELLS:]  # CLIP puts its class token first
