"""Models whose configurations are published, held as data: what a plan knows without a hub, and what `init` proposes.

The widths are those of each model's config.json on the hub. Built on torch's meta device they have the published
numbers of parameters, to the last one (tests/planning/test_presets.py). Gemma 3 and PaliGemma 2 are in sizes.py.

Licences are those on the models' pages: Apache-2.0 for Qwen3-VL, InternVL3.5 and SmolVLM2; Google's Gemma terms, which
are to be accepted on the hub before a download, for Gemma 3 and PaliGemma 2.
"""

import re
from dataclasses import dataclass

import transformers as hf

FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
QWEN3_VL = {"2B": (2048, 6144, 28, 16), "4B": (2560, 9728, 36, 32), "8B": (4096, 12288, 36, 32)}
INTERNVL3_5 = {"1B": (1024, 3072, 28, 16), **QWEN3_VL}  # the text parts are Qwen3's in both families
SMOLVLM2 = {"256M-Video": (576, 1536, 30, 9), "500M-Video": (960, 2560, 32, 15), "2.2B": (2048, 8192, 24, 32)}


@dataclass(frozen=True)
class Published:
    """A model that `init` may propose.

    Two of one lineage learnt from each other's weights or pictures, so that their agreement says less: InternVL3.5
    stands on Qwen3, both of Google's on Gemma.
    """

    place: str  # hub id
    parameters: int
    lineage: str
    licence: str
    gated: bool = False  # its terms must be accepted on the hub
    words: bool = False  # answers in a word or two, not in sentences
    number: int = 2  # bytes of a number as it is published


CATALOGUE = (
    Published("Qwen/Qwen3-VL-8B-Instruct", 8_767_123_696, "Qwen", "Apache-2.0"),
    Published("Qwen/Qwen3-VL-4B-Instruct", 4_437_815_808, "Qwen", "Apache-2.0"),
    Published("Qwen/Qwen3-VL-2B-Instruct", 2_127_532_032, "Qwen", "Apache-2.0"),
    Published("google/gemma-3-27b-it", 27_432_406_640, "Gemma", "Gemma terms", gated=True),
    Published("google/gemma-3-12b-it", 12_187_325_040, "Gemma", "Gemma terms", gated=True),
    Published("google/gemma-3-4b-it", 4_300_079_472, "Gemma", "Gemma terms", gated=True),
    Published("HuggingFaceTB/SmolVLM2-2.2B-Instruct", 2_246_784_880, "SmolLM", "Apache-2.0", number=4),
    Published("HuggingFaceTB/SmolVLM2-500M-Video-Instruct", 507_482_304, "SmolLM", "Apache-2.0", number=4),
    Published("HuggingFaceTB/SmolVLM2-256M-Video-Instruct", 256_484_928, "SmolLM", "Apache-2.0", number=4),
    Published("OpenGVLab/InternVL3_5-8B-HF", 8_528_318_464, "Qwen", "Apache-2.0"),
    Published("OpenGVLab/InternVL3_5-4B-HF", 4_732_489_216, "Qwen", "Apache-2.0"),
    Published("OpenGVLab/InternVL3_5-2B-HF", 2_348_347_392, "Qwen", "Apache-2.0"),
    Published("OpenGVLab/InternVL3_5-1B-HF", 1_060_897_792, "Qwen", "Apache-2.0"),
    Published("google/paligemma2-3b-mix-448", 3_032_979_696 + 64 * 2304, "Gemma", "Gemma terms", True, words=True),
)
LINEAGES = {  # of a model's type, where a family shares its lineage with another
    "qwen2_vl": "Qwen", "qwen2_5_vl": "Qwen", "qwen3_vl": "Qwen", "qwen3_5": "Qwen", "internvl": "Qwen",
    "gemma3": "Gemma", "gemma4": "Gemma", "paligemma": "Gemma", "smolvlm": "SmolLM",
}  # fmt: skip


def catalogued(place: str) -> Published | None:
    """What is known of a hub id, or None.

    >>> catalogued("Qwen/Qwen3-VL-2B-Instruct").licence, catalogued("org/other")
    ('Apache-2.0', None)
    """
    return next((model for model in CATALOGUE if model.place == place), None)


def configuration(place: str) -> hf.PreTrainedConfig | None:
    """The published configuration of a Qwen3-VL, InternVL3.5 or SmolVLM2, None for any other hub id.

    >>> configuration("Qwen/Qwen3-VL-8B-Instruct").text_config.num_hidden_layers
    36
    """
    if match := re.fullmatch(r"Qwen/Qwen3-VL-(\w+)-(?:Instruct|Thinking)", place):
        return _qwen3_vl(QWEN3_VL[match[1]], match[1]) if match[1] in QWEN3_VL else None
    if match := re.fullmatch(r"OpenGVLab/InternVL3_5-(\w+)-HF", place):
        return _internvl(INTERNVL3_5[match[1]]) if match[1] in INTERNVL3_5 else None
    if match := re.fullmatch(r"HuggingFaceTB/SmolVLM2-(.+)-Instruct", place):
        return _smolvlm(SMOLVLM2[match[1]]) if match[1] in SMOLVLM2 else None
    return None


def _qwen3(widths: tuple) -> dict:
    return dict(
        zip(FIELDS, widths, strict=True), vocab_size=151936, num_key_value_heads=8, head_dim=128, rms_norm_eps=1e-6
    )


def _qwen3_vl(widths: tuple, size: str) -> hf.Qwen3VLConfig:
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    vision: dict = dict(depth=24, hidden_size=1024, intermediate_size=4096, deepstack_visual_indexes=[5, 11, 17])
    return hf.Qwen3VLConfig(
        text_config=_qwen3(widths) | dict(max_position_embeddings=262144, rope_parameters=rope),
        vision_config=({} if size == "8B" else vision) | dict(out_hidden_size=widths[0]),
        tie_word_embeddings=size != "8B",
    )


def _internvl(widths: tuple) -> hf.InternVLConfig:
    return hf.InternVLConfig(
        text_config=_qwen3(widths) | dict(model_type="qwen3", max_position_embeddings=40960),
        vision_config=dict(attention_bias=True),  # InternViT-300M: all else is transformers' default
        image_token_id=151671,
        tie_word_embeddings=False,
    )


def _smolvlm(widths: tuple) -> hf.SmolVLMConfig:
    small = widths[0] < 2048  # these see with SigLIP base at 512 px, the large one with So400m at 384
    vision = (768, 3072, 12, 12, 512, 16) if small else (1152, 4304, 27, 16, 384, 14)
    groups = 3 if small else 1  # heads that share keys and values
    text = dict(zip(FIELDS, widths, strict=True), model_type="llama", vocab_size=49280, head_dim=64)
    return hf.SmolVLMConfig(
        text_config=text | dict(num_key_value_heads=widths[3] // groups, rms_norm_eps=1e-5),
        vision_config=dict(zip((*FIELDS, "image_size", "patch_size"), vision, strict=True)),
        scale_factor=4 if small else 3,
        image_token_id=49190,
        pad_token_id=2,
        tie_word_embeddings=False,
    )
