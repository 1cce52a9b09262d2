"""Models of real size with random weights, and processors for them: as large and as slow as trained ones, not as wise.

The configurations are the published ones (sizes.py), the processors those of the models' families, at the families'
own picture sizes. Only the tokenizer is made on the spot: one word for each number of the model's vocabulary.
"""

import copy
import zlib

import torch
import transformers as hf
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

from auditkit.miniature.families import FAMILIES
from auditkit.models import processors
from auditkit.models.base import quiet
from auditkit.models.transformers import VLM
from auditkit.planning import sizes

RANDOM_MODELS = {
    "paligemma2-3b": "google/paligemma2-3b-mix-448",
    "paligemma2-10b": "google/paligemma2-10b-mix-448",
    "paligemma2-28b": "google/paligemma2-28b-mix-448",
    "gemma3-4b": "google/gemma-3-4b-it",
    "gemma3-12b": "google/gemma-3-12b-it",
    "gemma3-27b": "google/gemma-3-27b-it",
}


def build_random_model(name: str, device: str, batch_size: int, tiny: bool = False) -> VLM:
    """A model of MODELS on a device, in bfloat16 on a GPU and float32 on a CPU.

    `tiny` keeps the family and shrinks everything else (`toy_config`).
    """
    config = sizes.known(RANDOM_MODELS[name])
    config = toy_config(config) if tiny else config
    torch.manual_seed(zlib.crc32(name.encode()))  # two of one size must not answer alike
    with torch.device(device), quiet():
        model = hf.AutoModelForImageTextToText.from_config(
            config, dtype=torch.bfloat16 if device == "cuda" else torch.float32
        )
    made = build_processor(config)
    model.generation_config = hf.GenerationConfig(
        do_sample=False,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        suppress_tokens=made.tokenizer.all_special_ids,  # the end among them: an answer is as long as it may be
    )
    return VLM(name, model.eval(), made, batch_size)


def toy_config(config: hf.PreTrainedConfig) -> hf.PreTrainedConfig:
    """The same configuration with all widths, depths and the vocabulary so small that a step takes a second."""
    config = copy.deepcopy(config)
    small = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    for part, values in (
        (config.text_config, small | dict(num_key_value_heads=2, head_dim=16, vocab_size=512)),
        (config.vision_config, small | dict(image_size=56)),
    ):
        for key, value in values.items():
            setattr(part, key, value)
    config.text_config.layer_types = config.text_config.layer_types[:2]
    if config.model_type == "gemma3":
        config.mm_tokens_per_image, config.image_token_index = 4, 300
        config.boi_token_index, config.eoi_token_index = 301, 302
    else:
        config.image_token_index, config.hidden_size, config.projection_dim = 300, 64, 64
        config.vision_config.projection_dim = 64
    return config


def build_processor(config: hf.PreTrainedConfig) -> "hf.ProcessorMixin":
    """A processor of the family's classes around a tokenizer with one word for each number of the vocabulary."""
    special = {0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", config.image_token_index: "<image>"}
    tokens = {"image_token": "<image>"}
    side = config.vision_config.image_size
    size = {"height": side, "width": side}
    if config.model_type == "gemma3":
        special |= {4: "<start_of_turn>", 5: "<end_of_turn>"}
        special |= {config.image_token_index: "<image_soft_token>"}
        special |= {config.boi_token_index: "<start_of_image>", config.eoi_token_index: "<end_of_image>"}
        tokens = FAMILIES["gemma3"].tokens
    words = {special.get(i, f"w{i}"): i for i in range(config.get_text_config().vocab_size)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        extra_special_tokens=tokens,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="left",
    )
    if config.model_type == "gemma3":
        pictures = hf.Gemma3ImageProcessorPil(size=size, do_pan_and_scan=False)
        template = FAMILIES["gemma3"].template
        made = hf.Gemma3Processor(pictures, fast, chat_template=template, image_seq_length=config.mm_tokens_per_image)
        return processors.settled(made)
    pictures = hf.SiglipImageProcessorPil(size=size)
    pictures.image_seq_length = (side // config.vision_config.patch_size) ** 2
    return processors.settled(hf.PaliGemmaProcessor(pictures, fast))
