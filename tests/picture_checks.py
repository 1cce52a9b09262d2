"""Tiny models of CLIP's kind with random weights, of the classes that published ones have."""

from pathlib import Path

import torch
import transformers as hf

from auditkit.miniature import painters

LENGTH = 16  # tokens


def clip():
    words = painters.tokenizer(LENGTH, "<s> $A </s>")
    ids = {"pad_token_id": words.pad_token_id, "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    images = hf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    part = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    config = hf.CLIPConfig(
        text_config=part | ids | {"vocab_size": len(words), "max_position_embeddings": LENGTH},
        vision_config=part | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    return hf.CLIPModel(config), hf.CLIPProcessor(images, words)


def siglip():
    """Its text is padded, and its end not marked."""
    words = painters.tokenizer(LENGTH, "$A </s>")
    part = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    config = hf.SiglipConfig(
        text_config=part | {"vocab_size": len(words), "max_position_embeddings": LENGTH, "projection_size": 16},
        vision_config=part | {"image_size": 32, "patch_size": 8},
    )
    images = hf.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    return hf.SiglipModel(config), hf.SiglipProcessor(images, words)


def save(build, folder: Path, seed: int = 0) -> Path:
    """A model and its processor in a folder, as `picture_check` names one."""
    torch.manual_seed(seed)
    model, processor = build()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
