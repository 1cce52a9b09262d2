"""One tiny model a family: its real configuration, model and processor classes, random weights, no hub.

Special tokens, chat templates and image processors are the families' own. The chat templates are the published ones
that TRL ships; those of families that it does not have (tests/templates) are written to render the same, and PaliGemma
has none. The tokenizers are trained here; like the published ones, some put a BOS before every text.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers import processors as post_processors

from auditkit.models.trainer_internals import without_video

WIDTH, LAYERS, HEADS = 32, 2, 4
CORPUS = [
    "what colour is the object at the top left of this picture?",
    "how many small red boxes are there, and where?",
]


@dataclass
class Family:
    """What makes one family; `prompt` is the whole text for the question "how many boats?", as its authors have it."""

    build: Callable  # tokenizer -> (model's configuration, processor)
    prompt: str
    end: str  # the token that ends an answer
    tokens: dict[str, str] = field(default_factory=dict)  # special tokens by the name the processor looks for
    more: tuple[str, ...] = ()  # special tokens without a name
    bos: str | None = "<bos>"
    adds_bos: bool = False  # the tokenizer puts it before every text
    pad: str = "<pad>"
    eos: str = "<eos>"
    template: str | None = None
    adapted: int = LAYERS * 7  # layers that get an adapter: q, k, v, o and the three of the MLP


def tokenizer(family: Family) -> hf.PreTrainedTokenizerFast:
    """A byte-level BPE with the family's special tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        CORPUS * 4, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    )
    special = [*dict.fromkeys([family.pad, family.eos, *([family.bos] if family.bos else []), *family.tokens.values()])]
    bpe.add_special_tokens([*special, *family.more])
    if family.adds_bos:
        bpe.post_processor = post_processors.TemplateProcessing(
            single=f"{family.bos} $A",
            pair=f"{family.bos} $A $B",
            special_tokens=[(family.bos, bpe.token_to_id(family.bos))],
        )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=family.pad,
        eos_token=family.eos,
        **({"bos_token": family.bos} if family.bos else {}),
        extra_special_tokens=dict(family.tokens),
        model_input_names=["input_ids", "attention_mask"],
    )


def text(tok, **more) -> dict:
    """The sizes of a text part."""
    return dict(
        vocab_size=len(tok), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=2, max_position_embeddings=2048, bos_token_id=tok.bos_token_id,
        eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id, **more,
    )  # fmt: skip


def vision(**more) -> dict:
    """The sizes of a vision tower."""
    return dict(
        hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, **more
    )


GEMMA = dict(head_dim=8, query_pre_attn_scalar=8, sliding_window=512, final_logit_softcapping=None)


def paligemma2(tok):
    images = hf.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    processor = hf.PaliGemmaProcessor(images, tok)
    config = hf.PaliGemmaConfig(
        text_config=hf.Gemma2Config(**text(tok, **GEMMA, attn_logit_softcapping=None)),
        vision_config=hf.SiglipVisionConfig(**vision(image_size=32, patch_size=8, vision_use_head=False)),
        image_token_index=tok.convert_tokens_to_ids("<image>"), projection_dim=WIDTH, hidden_size=WIDTH,
        vocab_size=len(tok), bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
    )  # fmt: skip
    return config, processor


def gemma3(tok):
    images = hf.Gemma3ImageProcessorPil(size={"height": 32, "width": 32}, do_pan_and_scan=False)
    processor = hf.Gemma3Processor(images, tok, image_seq_length=4)
    config = hf.Gemma3Config(
        text_config=hf.Gemma3TextConfig(**text(tok, **GEMMA)),
        vision_config=hf.SiglipVisionConfig(**vision(image_size=32, patch_size=8, vision_use_head=False)),
        mm_tokens_per_image=4, image_token_index=tok.image_token_id,
        boi_token_index=tok.boi_token_id, eoi_token_index=tok.eoi_token_id,
    )  # fmt: skip
    return config, processor


def gemma4(tok):
    images = hf.Gemma4ImageProcessorPil(patch_size=8, pooling_kernel_size=2, max_soft_tokens=70)
    processor = without_video(hf.Gemma4Processor)(
        hf.Gemma4AudioFeatureExtractor(), images, tok, None, image_seq_length=70
    )
    config = hf.Gemma4Config(
        text_config=hf.Gemma4TextConfig(
            **text(tok, head_dim=8, sliding_window=512, global_head_dim=8, hidden_size_per_layer_input=8,
                   vocab_size_per_layer_input=len(tok), use_bidirectional_attention="vision",
                   layer_types=["sliding_attention", "full_attention"])
        ),
        vision_config=hf.Gemma4VisionConfig(
            **vision(patch_size=8, pooling_kernel_size=2, head_dim=8, num_key_value_heads=4, position_embedding_size=64)
        ),
        audio_config=None,
        boi_token_id=tok.boi_token_id, eoi_token_id=tok.eoi_token_id, image_token_id=tok.image_token_id,
        audio_token_id=tok.audio_token_id, boa_token_id=tok.boa_token_id, eoa_token_index=tok.eoa_token_id,
        video_token_id=tok.convert_tokens_to_ids("<|video|>"),
    )  # fmt: skip
    return config, processor


def qwen(tok, kind: str):
    images = hf.Qwen2VLImageProcessorPil(
        patch_size=8,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 16 * 16 * 4, "longest_edge": 16 * 16 * 20},
    )
    maker = getattr(hf, f"{'Qwen3VL' if kind in ('Qwen3_5', 'Qwen3VLMoe') else kind}Processor")
    processor = without_video(maker)(images, tok, None)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    sizes = dict(
        depth=LAYERS, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_heads=HEADS, patch_size=8,
        out_hidden_size=WIDTH,
    )  # fmt: skip
    if kind == "Qwen3_5":
        sizes |= dict(num_position_embeddings=64)
        linear = dict(
            linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
            layer_types=["full_attention", "linear_attention"],
        )  # fmt: skip
        more = dict(head_dim=16, rope_parameters=rope | {"mrope_interleaved": True, "partial_rotary_factor": 0.5})
        words = hf.Qwen3_5TextConfig(**text(tok, **more, **linear))
    elif kind == "Qwen2_5_VL":
        sizes |= dict(window_size=32, fullatt_block_indexes=[1])
        words = hf.Qwen2_5_VLTextConfig(**text(tok, rope_parameters=rope))
    elif kind == "Qwen2VL":
        sizes = dict(depth=LAYERS, embed_dim=WIDTH, hidden_size=WIDTH, num_heads=HEADS, patch_size=8)
        words = hf.Qwen2VLTextConfig(**text(tok, rope_parameters=rope))
    else:
        sizes |= dict(num_position_embeddings=64, deepstack_visual_indexes=[0])
        more = dict(rope_parameters=rope | {"mrope_interleaved": True}, head_dim=8)
        if kind == "Qwen3VLMoe":
            more |= dict(moe_intermediate_size=WIDTH, num_experts=4, num_experts_per_tok=2)
        words = getattr(hf, f"{kind}TextConfig")(**text(tok, **more))
    ids = {
        f"{name}_token_id": tok.convert_tokens_to_ids(token)
        for name, token in (
            ("image", "<|image_pad|>"), ("video", "<|video_pad|>"), ("vision_start", "<|vision_start|>"),
            ("vision_end", "<|vision_end|>"),
        )
    }  # fmt: skip
    return getattr(hf, f"{kind}Config")(text_config=words.to_dict(), vision_config=sizes, **ids), processor


def idefics(tok, kind: str):
    edge = {"longest_edge": 64}
    images = getattr(hf, f"{kind}ImageProcessorPil")(size=edge, max_image_size={"longest_edge": 32})  # split into tiles
    maker, video = getattr(hf, f"{kind}Processor"), {}
    if kind == "SmolVLM":
        maker, video = without_video(maker), {"video_processor": None}
    processor = maker(images, tok, image_seq_len=4, **video)
    config = getattr(hf, f"{kind}Config")(
        text_config=hf.LlamaConfig(**text(tok)), vision_config=vision(image_size=32, patch_size=8), scale_factor=2,
        image_token_id=tok.convert_tokens_to_ids("<image>"), pad_token_id=tok.pad_token_id,
    )  # fmt: skip
    return config, processor


def llava_onevision(tok):
    points = [[32, 32], [32, 64], [64, 32], [64, 64]]
    images = hf.LlavaOnevisionImageProcessorPil(size={"height": 32, "width": 32}, image_grid_pinpoints=points)
    processor = without_video(hf.LlavaOnevisionProcessor)(
        images, tok, None, num_image_tokens=16, vision_feature_select_strategy="full"
    )
    config = hf.LlavaOnevisionConfig(
        text_config=hf.Qwen2Config(**text(tok)),
        vision_config=hf.SiglipVisionConfig(**vision(image_size=32, patch_size=8, vision_use_head=False)),
        image_token_index=tok.convert_tokens_to_ids("<image>"), video_token_index=tok.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=points,
    )  # fmt: skip
    return config, processor


def internvl(tok):
    images = hf.GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, max_patches=4)
    processor = without_video(hf.InternVLProcessor)(images, tok, None, image_seq_length=4)
    config = hf.InternVLConfig(
        text_config=hf.Qwen2Config(**text(tok)), vision_config=vision(image_size=[32, 32], patch_size=[8, 8]),
        image_token_id=tok.context_image_token_id, image_seq_length=4,
    )  # fmt: skip
    return config, processor


def idefics2(tok):
    images = hf.Idefics2ImageProcessorPil(size={"shortest_edge": 16, "longest_edge": 32})
    processor = hf.Idefics2Processor(images, tok, image_seq_len=4)
    config = hf.Idefics2Config(
        text_config=hf.MistralConfig(**text(tok)), vision_config=vision(image_size=32, patch_size=8),
        perceiver_config=dict(
            hidden_size=WIDTH, resampler_n_latents=4, resampler_depth=1, resampler_n_heads=HEADS, resampler_head_dim=8,
            num_key_value_heads=2,
        ),
        image_token_id=tok.convert_tokens_to_ids("<image>"), pad_token_id=tok.pad_token_id,
    )  # fmt: skip
    return config, processor


def glm(tok, kind: str):
    images = getattr(hf, f"{kind}ImageProcessorPil")(
        patch_size=8, merge_size=2, size={"shortest_edge": 2 * 16 * 16 * 4, "longest_edge": 2 * 16 * 16 * 20}
    )
    processor = without_video(getattr(hf, f"{kind}Processor"))(images, tok, None)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
    words = hf.Glm4vTextConfig(**text(tok, head_dim=16, rope_parameters=rope))
    config = getattr(hf, f"{kind}Config")(
        text_config=words.to_dict(),
        vision_config=dict(
            depth=LAYERS, hidden_size=WIDTH, num_heads=HEADS, intermediate_size=2 * WIDTH, out_hidden_size=WIDTH,
            patch_size=8, image_size=64,
        ),
        **{
            f"{name}_token_id": tok.convert_tokens_to_ids(token)
            for name, token in (
                ("image", "<|image|>"), ("image_start", "<|begin_of_image|>"), ("image_end", "<|end_of_image|>"),
                ("video", "<|video|>"), ("video_start", "<|begin_of_video|>"), ("video_end", "<|end_of_video|>"),
            )
        },
    )  # fmt: skip
    return config, processor


def janus(tok):
    images = hf.JanusImageProcessorPil(size={"height": 32, "width": 32})
    processor = hf.JanusProcessor(images, tok, num_image_tokens=16)
    config = hf.JanusConfig(
        text_config=hf.LlamaConfig(**text(tok)),
        vision_config=dict(
            hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, image_size=32, patch_size=8,
            projection_dim=WIDTH, num_image_tokens=16, mlp_ratio=2,
        ),
        # with which it draws pictures, of no use to an audit
        vq_config=dict(
            base_channels=32, channel_multiplier=[1, 1], num_res_blocks=1, latent_channels=32, num_embeddings=16,
            projection_dim=WIDTH, image_token_embed_dim=WIDTH,
        ),
        image_token_id=tok.convert_tokens_to_ids(tok.image_token),
    )  # fmt: skip
    return config, processor


def deepseek_vl(tok):
    images = hf.DeepseekVLImageProcessorPil(size={"height": 32, "width": 32})
    processor = hf.DeepseekVLProcessor(images, tok, num_image_tokens=16)
    config = hf.DeepseekVLConfig(
        text_config=hf.LlamaConfig(**text(tok)),
        vision_config=hf.SiglipVisionConfig(**vision(image_size=32, patch_size=8, vision_use_head=False)),
        image_token_id=tok.image_token_id,
    )
    return config, processor


def llava(tok, kind: str):
    """LLaVA 1.5 on Vicuna, or LLaVA-NeXT, which tiles its pictures, on Mistral."""
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    points = {"image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]]} if kind == "LlavaNext" else {}
    images = (hf.LlavaNextImageProcessorPil if points else hf.CLIPImageProcessorPil)(**size, **points)
    processor = getattr(hf, f"{kind}Processor")(
        images, tok, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    config = getattr(hf, f"{kind}Config")(
        text_config=(hf.MistralConfig if points else hf.LlamaConfig)(**text(tok)),
        vision_config=hf.CLIPVisionConfig(**vision(image_size=32, patch_size=8, projection_dim=WIDTH)),
        image_token_index=tok.convert_tokens_to_ids("<image>"), **points,
    )  # fmt: skip
    return config, processor


def video_llama3(tok):
    """Its version for images, on Qwen 2.5."""
    images = hf.VideoLlama3ImageProcessorPil(patch_size=8, merge_size=1, min_pixels=8 * 8 * 4, max_pixels=8 * 8 * 20)
    processor = without_video(hf.VideoLlama3Processor)(images, tok, None)
    config = hf.VideoLlama3Config(
        text_config=hf.Qwen2Config(**text(tok)), vision_config=vision(patch_size=8),
        image_token_id=tok.convert_tokens_to_ids("<image>"), video_token_id=tok.convert_tokens_to_ids("<video>"),
    )  # fmt: skip
    return config, processor


def aya_vision(tok):
    images = hf.GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, max_patches=2)
    processor = hf.AyaVisionProcessor(images, tok, patch_size=8, img_size=32, downsample_factor=2)
    config = hf.AyaVisionConfig(
        text_config=hf.Cohere2Config(**text(tok, head_dim=8, logit_scale=0.25)),
        vision_config=hf.SiglipVisionConfig(**vision(image_size=32, patch_size=8, vision_use_head=False)),
        image_token_index=tok.convert_tokens_to_ids("<|IMG_PATCH|>"),
    )
    return config, processor


def mllama(tok):
    images = hf.MllamaImageProcessorPil(size={"height": 32, "width": 32}, max_image_tiles=2)
    processor = hf.MllamaProcessor(images, tok)
    tower = vision(image_size=32, patch_size=8)
    tower["attention_heads"] = tower.pop("num_attention_heads")
    config = hf.MllamaConfig(
        text_config=hf.MllamaTextConfig(
            **text(tok, cross_attention_layers=[1], rope_parameters={"rope_type": "default", "rope_theta": 1e4})
        ),
        vision_config=hf.MllamaVisionConfig(
            **tower, num_global_layers=1, max_num_tiles=2, supported_aspect_ratios=[[1, 1], [1, 2], [2, 1]],
            intermediate_layers_indices=[0], vision_output_dim=2 * WIDTH,
        ),
        image_token_index=tok.convert_tokens_to_ids("<|image|>"),
    )  # fmt: skip
    return config, processor


def ovis2(tok):
    images = hf.Ovis2ImageProcessorPil(size={"height": 32, "width": 32}, max_patches=2)
    processor = hf.Ovis2Processor(images, tok, image_seq_length=4)
    config = hf.Ovis2Config(
        text_config=hf.Qwen2Config(**text(tok)),
        vision_config=hf.Ovis2VisionConfig(
            **vision(image_size=32, patch_size=8, hidden_stride=2, vocab_size=24, num_visual_indicator_tokens=5)
        ),
        image_token_id=tok.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=[tok.convert_tokens_to_ids(token) for token in INDICATORS],
        vocab_size=len(tok), hidden_size=WIDTH,
    )  # fmt: skip
    return config, processor


# ---- not of all use to an audit: an encoder-decoder, and two that need torchvision -----------------------------------


def t5gemma2(tok):
    images = hf.Gemma3ImageProcessorPil(size={"height": 32, "width": 32}, do_pan_and_scan=False)
    processor = hf.Gemma3Processor(images, tok, image_seq_length=4)
    sizes = text(tok, head_dim=8, query_pre_attn_scalar=8, sliding_window=512)
    encoder = hf.T5Gemma2EncoderConfig(
        text_config=sizes, vision_config=vision(image_size=32, patch_size=8, vision_use_head=False),
        mm_tokens_per_image=4, image_token_index=tok.image_token_id,
        boi_token_index=tok.boi_token_id, eoi_token_index=tok.eoi_token_id,
    )  # fmt: skip
    return hf.T5Gemma2Config(encoder=encoder, decoder=sizes, image_token_index=tok.image_token_id), processor


def mistral(tok, kind: str):
    """Pixtral (in LLaVA's class) or Mistral3, whose processor needs torchvision."""
    joined = 2 if kind == "Mistral3" else 1
    images = hf.PixtralImageProcessorPil(size={"longest_edge": 64}, patch_size={"height": 8, "width": 8})
    processor = hf.PixtralProcessor(images, tok, patch_size=8, spatial_merge_size=joined)
    more = {"spatial_merge_size": 2} if kind == "Mistral3" else {"vision_feature_select_strategy": "full"}
    config = getattr(hf, f"{kind}Config")(
        text_config=hf.MistralConfig(**text(tok, head_dim=8)),
        vision_config=hf.PixtralVisionConfig(**vision(image_size=64, patch_size=8, head_dim=8)),
        image_token_index=tok.convert_tokens_to_ids("[IMG]"), vision_feature_layer=-1, **more,
    )  # fmt: skip
    return config, processor


def published(name: str) -> str:
    here = Path(__file__).parent / "templates" / f"{name}.jinja"
    return here.read_text() if here.is_file() else (files("trl") / "chat_templates" / f"{name}.jinja").read_text()


CHATML = "<|im_start|>user\n{picture}how many boats?<|im_end|>\n<|im_start|>assistant\n"
QWEN = dict(
    end="<|im_end|>", eos="<|im_end|>", pad="<|endoftext|>", bos=None,
    more=("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)  # fmt: skip
GLM = dict(
    prompt="[gMASK]<sop><|user|>\n<|begin_of_image|><|image|><|end_of_image|>how many boats?<|assistant|>\n",
    end="<|endoftext|>", eos="<|endoftext|>", pad="<|pad|>", bos=None, template="glm4v", adapted=LAYERS * 6,
    more=("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|image|>", "<|begin_of_image|>", "<|end_of_image|>",
          "<|video|>", "<|begin_of_video|>", "<|end_of_video|>"),
)  # fmt: skip
INDICATORS = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
TILES = ("<fake_token_around_image>", "<global-img>", *(f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)))

FAMILIES = {
    "paligemma2": Family(paligemma2, "<image>answer en how many boats?", end="<eos>", adds_bos=True),
    "gemma3": Family(
        gemma3,
        "<bos><start_of_turn>user\n<start_of_image>how many boats?<end_of_turn>\n<start_of_turn>model\n",
        end="<end_of_turn>",
        tokens={"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
        more=("<start_of_turn>", "<end_of_turn>"),
        adds_bos=True,
        template="gemma3",
    ),
    "gemma4": Family(
        gemma4,
        "<bos><|turn>user\n<|image|>how many boats?<turn|>\n<|turn>model\n",
        end="<turn|>",
        tokens={
            "image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>",
            "audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>",
        },
        more=("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>"),
        adds_bos=True,
        template="gemma4_v5",
    ),
    "qwen2_5_vl": Family(
        lambda tok: qwen(tok, "Qwen2_5_VL"),
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        + CHATML.format(picture="<|vision_start|><|image_pad|><|vision_end|>"),
        template="qwen2_5_vl", **QWEN,
    ),
    "qwen3_vl": Family(
        lambda tok: qwen(tok, "Qwen3VL"),
        CHATML.format(picture="<|vision_start|><|image_pad|><|vision_end|>"), template="qwen3_vl", **QWEN,
    ),
    "qwen3_5": Family(
        lambda tok: qwen(tok, "Qwen3_5"),
        CHATML.format(picture="<|vision_start|><|image_pad|><|vision_end|>") + "<think>\n\n</think>\n\n",
        template="qwen3_5_nothink", adapted=7 + 3, **QWEN,
    ),
    "smolvlm": Family(
        lambda tok: idefics(tok, "SmolVLM"),
        "<|im_start|>User:<image>how many boats?<end_of_utterance>\nAssistant:",
        bos="<|im_start|>", end="<end_of_utterance>", eos="<end_of_utterance>", pad="<|im_end|>",
        tokens={
            "image_token": "<image>", "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>",
        },
        more=TILES[2:], template="smolvlm",
    ),
    "idefics3": Family(
        lambda tok: idefics(tok, "Idefics3"),
        "<|begin_of_text|>User:<image>how many boats?<end_of_utterance>\nAssistant:",
        bos="<|begin_of_text|>", adds_bos=True, end="<end_of_utterance>", eos="<|end_of_text|>",
        more=("<image>", "<end_of_utterance>", *TILES), template="idefics3",
    ),
    "llava_onevision": Family(
        llava_onevision, CHATML.format(picture="<image>\n"), end="<|im_end|>", eos="<|im_end|>", pad="<|endoftext|>",
        bos=None, more=("<|im_start|>", "<image>", "<video>"), template="llava_onevision",
    ),
    "internvl": Family(
        internvl, CHATML.format(picture="<IMG_CONTEXT>\n"), end="<|im_end|>", eos="<|im_end|>", pad="<|endoftext|>",
        bos=None, more=("<|im_start|>",), template="internvl",
        tokens={
            "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    ),
    "qwen2_vl": Family(
        lambda tok: qwen(tok, "Qwen2VL"),
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        + CHATML.format(picture="<|vision_start|><|image_pad|><|vision_end|>"),
        template="qwen2_5_vl", **QWEN,
    ),
    "qwen3_vl_moe": Family(
        lambda tok: qwen(tok, "Qwen3VLMoe"),
        CHATML.format(picture="<|vision_start|><|image_pad|><|vision_end|>"), template="qwen3_vl",
        adapted=LAYERS * 4, **QWEN,
    ),
    "idefics2": Family(
        idefics2, "User:<image>how many boats?<end_of_utterance>\nAssistant:", bos="<s>", adds_bos=True, eos="</s>",
        end="<end_of_utterance>", more=("<fake_token_around_image>", "<image>", "<end_of_utterance>"),
        template="idefics2",
    ),
    "glm4v": Family(lambda tok: glm(tok, "Glm4v"), **GLM),
    "glm46v": Family(lambda tok: glm(tok, "Glm46V"), **GLM),
    "janus": Family(
        janus, "<|User|>: <image_placeholder>\nhow many boats?\n\n<|Assistant|>:",
        bos="<|begin_of_sentence|>", adds_bos=True, eos="<|end_of_sentence|>", end="<|end_of_sentence|>",
        tokens={"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"},
        more=("<|User|>", "<|Assistant|>"), template="janus",
    ),
    "deepseek_vl": Family(
        deepseek_vl,
        "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
        "provides, and assist the user with a variety of tasks using natural language.\n\n"
        "User: <image_placeholder>how many boats?\n\nAssistant:",
        bos="<|begin_of_sentence|>", adds_bos=True, eos="<|end_of_sentence|>", end="<|end_of_sentence|>",
        tokens={"image_token": "<image_placeholder>"}, template="deepseek_vl",
    ),
    "llava": Family(
        lambda tok: llava(tok, "Llava"), "USER: <image>\nhow many boats? ASSISTANT:", bos="<s>", adds_bos=True,
        eos="</s>", end="</s>", more=("<image>",), template="llava",
    ),
    "llava_next": Family(
        lambda tok: llava(tok, "LlavaNext"), "[INST] <image>\nhow many boats? [/INST]", bos="<s>", adds_bos=True,
        eos="</s>", end="</s>", more=("<image>",), template="llava_next",
    ),
    "video_llama_3": Family(
        video_llama3, CHATML.format(picture="<image>\n"), end="<|im_end|>", eos="<|im_end|>", pad="<|endoftext|>",
        bos=None, tokens={"image_token": "<image>", "video_token": "<video>"}, more=("<|im_start|>",),
        template="llava_onevision",
    ),
    "aya_vision": Family(
        aya_vision,
        "<bos><|START_OF_TURN_TOKEN|><|USER_TOKEN|><image>how many boats?<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        end="<|END_OF_TURN_TOKEN|>", adds_bos=True, template="aya_vision",
        more=("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "TILE", "TILE_GLOBAL",
              "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
    ),
    "mllama": Family(
        mllama,
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<|image|>how many boats?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        bos="<|begin_of_text|>", adds_bos=True, eos="<|eot_id|>", end="<|eot_id|>", template="mllama",
        more=("<|image|>", "<|python_tag|>", "<|start_header_id|>", "<|end_header_id|>"),
    ),
    "ovis2": Family(
        ovis2, CHATML.format(picture="<image>\n"), end="<|im_end|>", eos="<|im_end|>", pad="<|endoftext|>",
        bos=None, more=("<|im_start|>", "<image>", "<IMG_ATOM>", *INDICATORS), template="llava_onevision",
    ),
}  # fmt: skip

MISTRAL = dict(
    prompt="<s>[INST][IMG]how many boats?[/INST]", bos="<s>", eos="</s>", end="</s>", template="mistral",
    more=("[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"),
)  # fmt: skip
# what an audit makes of these: it is asked only, or refused
OTHERS = {
    "t5gemma2": Family(
        t5gemma2, FAMILIES["gemma3"].prompt, end="<end_of_turn>", adds_bos=True, template="gemma3",
        tokens=FAMILIES["gemma3"].tokens, more=FAMILIES["gemma3"].more,
    ),
    "pixtral": Family(lambda tok: mistral(tok, "Llava"), **MISTRAL),
    "mistral3": Family(lambda tok: mistral(tok, "Mistral3"), **MISTRAL),
}  # fmt: skip


# what transformers chooses a processor by, of families whose pictures only torchvision prepares
REFUSED = {
    "pixtral": ("llava", "PixtralProcessor"),
    "mistral3": ("mistral3", "PixtralProcessor"),
    "lfm2_vl": ("lfm2_vl", "Lfm2VlProcessor"),
    "cohere2_vision": ("cohere2_vision", "Cohere2VisionProcessor"),
}


def settings(folder: Path, kind: str, processor: str, template: str = "llava_onevision") -> Path:
    """A folder with what transformers chooses a processor by, and no weights."""
    folder.mkdir()
    tokenizer(FAMILIES["llava_onevision"]).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"processor_class": processor}))
    (folder / "chat_template.jinja").write_text(published(template))
    return folder


def save(name: str, folder: Path, seed: int = 0) -> Path:
    """Build a family's tiny model and save it as a model folder is saved."""
    family = (FAMILIES | OTHERS)[name]
    tok = tokenizer(family)
    config, processor = family.build(tok)
    if family.template:
        processor.chat_template = published(family.template)
    torch.manual_seed(seed)
    model = hf.AutoModelForImageTextToText.from_config(config)
    for where, parameter in model.named_parameters():
        # far from the usual 0.02, which in so narrow a model leaves nothing of the picture, and not 0, as some start;
        # but for embeddings, which Gemma enlarges, and ties to a head that would only echo them
        if parameter.dim() >= 2:
            gain = 0.3 if "embed_tokens" in where else 2
            torch.nn.init.normal_(parameter, std=gain / math.sqrt(math.prod(parameter.shape[1:])))
        elif where.endswith(("attn_gate", "mlp_gate")):  # Mllama's start closed
            torch.nn.init.ones_(parameter)
    ends = [*dict.fromkeys([tok.eos_token_id, tok.convert_tokens_to_ids(family.end)])]
    model.generation_config = hf.GenerationConfig(
        do_sample=False, bos_token_id=tok.bos_token_id, pad_token_id=tok.pad_token_id, eos_token_id=ends,
        # random weights would write little else
        suppress_tokens=[*tok.all_special_ids, *tok.added_tokens_decoder],
    )  # fmt: skip
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
