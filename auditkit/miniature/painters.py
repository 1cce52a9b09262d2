"""A generator and an editor of the board world: diffusers' FLUX pipelines, built from configuration, only small.

Nothing here is a stand-in: text encoders, autoencoder, transformer and scheduler are the real classes, saved with
save_pretrained and loaded with DiffusionPipeline like a model from the hub. draw.py trains them.

One cell of the board is one token: 64 px become 8 x 8 latents of 8 channels, which FLUX packs two by two into 16
tokens of 32 numbers.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

from auditkit.counterfactual import pipelines
from auditkit.miniature import world

SIDE = 64  # pixels
LENGTH = {"editor": 16, "generator": 56}  # tokens: the longest command has 9, a caption of six things 51 and the end
CHANNELS = 8  # of the latents
WIDTH, HEADS = 96, 4
STEPS = 1  # of denoising: more bring nothing, as `auditkit miniature painters` shows

WORDS = (
    "a , the object at paint turn into make remove what is put change background to board with clock showing sign"
    " pointing"
).split()


def words() -> list[str]:
    """Every word of commands and captions, a position such as "b3" too."""
    of_the_world = (world.SHAPES, world.COLOURS, world.SIZES, world.PATTERNS, world.BACKGROUNDS, world.DIRECTIONS)
    signs = [*world.LETTERS, *world.DIGITS, *map(str, world.HOURS)]
    return list(dict.fromkeys([*WORDS, *(w for group in of_the_world for w in group), *signs, *world.POSITIONS]))


def tokenizer(length: int, form: str) -> hf.PreTrainedTokenizerFast:
    """One word, one token; a word it does not know is "<unk>", which the training strews in so that it is skipped over.

    length: tokens, to which texts are cut and padded. form: "$A </s>" as T5 has it or "<s> $A </s>" as CLIP has it.
    """
    specials = ["<pad>", "<unk>", "<s>", "</s>"]  # CLIP pools at the first end token, unless its id is 2 (an old error)
    vocab = {word: i for i, word in enumerate([*specials, *words()])}
    made = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single=form, special_tokens=[("<s>", 2), ("</s>", 3)])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=length,
        clean_up_tokenization_spaces=False,
    )


def autoencoder(halvings: int = 3) -> diffusers.AutoencoderKL:
    """The untrained autoencoder that both pipelines share, of 0.97 million parameters, or one of fewer halvings."""
    return diffusers.AutoencoderKL(
        block_out_channels=(16, 32, 64, 64)[: halvings + 1],
        down_block_types=("DownEncoderBlock2D",) * (halvings + 1),
        up_block_types=("UpDecoderBlock2D",) * (halvings + 1),
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=SIDE,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
        scaling_factor=1.0,  # and shift_factor: set from the latents' mean and spread after the training
    )


def deeper(vae: diffusers.AutoencoderKL) -> diffusers.AutoencoderKL:
    """An autoencoder of three halvings, with all that one of two has learnt in its outer layers."""
    grown = autoencoder(3)
    new, known = grown.state_dict(), vae.state_dict()
    for name, value in known.items():
        part = name.split(".")
        if part[:2] == ["decoder", "up_blocks"]:  # counted from the inside, where the new one is
            part[2] = str(int(part[2]) + 1)
        new[".".join(part)] = value
    for name in list(new):  # the new one begins as its neighbour
        if name.startswith("decoder.up_blocks.0."):
            new[name] = new[name.replace("up_blocks.0.", "up_blocks.1.")].clone()
    grown.load_state_dict(new)
    return grown


def pipeline(role: str, vae: diffusers.AutoencoderKL) -> diffusers.DiffusionPipeline:
    """An untrained editor (FluxKontextPipeline) or generator (FluxPipeline) around an autoencoder."""
    t5 = tokenizer(LENGTH[role], "$A </s>")
    clip = tokenizer(LENGTH[role], "<s> $A </s>")
    text = hf.T5EncoderModel(
        hf.T5Config(
            vocab_size=len(t5),
            d_model=64,
            d_kv=16,
            num_heads=4,
            d_ff=128,
            num_layers=2,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        )
    )
    pooled = hf.CLIPTextModel(
        hf.CLIPTextConfig(
            vocab_size=len(clip),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=max(LENGTH.values()),  # the same weights for both
            pad_token_id=clip.pad_token_id,
            bos_token_id=clip.bos_token_id,
            eos_token_id=clip.eos_token_id,
        )
    )
    head = WIDTH // HEADS
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=4 * CHANNELS,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=head,
        num_attention_heads=HEADS,
        joint_attention_dim=64,
        pooled_projection_dim=32,
        axes_dims_rope=(head // 3,) * 3,
    )
    _head_start(transformer, text, t5)
    kind = diffusers.FluxKontextPipeline if role == "editor" else diffusers.FluxPipeline
    return kind(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=pooled,
        tokenizer=clip,
        text_encoder_2=text,
        tokenizer_2=t5,
        transformer=transformer,
    )


@torch.no_grad()
def _head_start(transformer, text, tokenizer) -> None:
    """Begin with what so short a training does not find by itself: where a cell is, which words belong together."""
    for name, parameter in transformer.named_parameters():
        if sharpens(name):  # its norms: attention over so few channels starts too flat
            nn.init.constant_(parameter, 2.0)
    # A place is told by rotation alone, and only the fastest pair of numbers of rows and columns turns noticeably in
    # four steps. Queries start with that pair; so do keys in two heads of four, which so look at their own place.
    for block in transformer.transformer_blocks:
        for part, heads in ((block.attn.to_q, HEADS), (block.attn.to_k, 2)):
            part.bias.view(HEADS, 3, -1)[:heads, 1:, :2] = 3.0  # [head, time | row | column, number]
    # A position's word starts with the angles by which its cell is turned.
    for n, position in enumerate(world.POSITIONS):
        turns = torch.tensor([n // world.SIDE, n % world.SIDE])
        word = tokenizer.convert_tokens_to_ids(position)
        text.shared.weight[word, :4] = 2 * torch.cat([turns.cos(), turns.sin()])
    # Which look belongs to which place is told by distance: in "small dotted red star at b3", "small" is five back.
    # Each head of T5 starts with looking back at one of these words.
    order = text.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # [distance, head]
    order[range(2, 6), range(4)] = 6.0


def sharpens(name: str) -> bool:
    """Whether a parameter of this name decides how sharp attention can be: a norm of queries or keys, or T5's bias by
    distance.
    """
    return any(part in name for part in ("norm_q", "norm_k", "norm_added", "relative_attention_bias"))


def pack(latents: torch.Tensor) -> torch.Tensor:
    """[B, 16, n, n] latents as FLUX's tokens, put together cell by cell: [B, 16, 4 n n].

    With three halvings n is 8, and a cell is one token; with two, while the autoencoder grows, a cell is four.
    """
    tokens = diffusers.FluxPipeline._pack_latents(latents, len(latents), CHANNELS, *latents.shape[2:])
    k, cells = latents.shape[-1] // 2 // world.SIDE, world.SIDE
    return tokens.reshape(-1, cells, k, cells, k, 4 * CHANNELS).transpose(2, 3).reshape(len(latents), cells**2, -1)


def unpack(tokens: torch.Tensor) -> torch.Tensor:
    """The reverse of `pack`."""
    cells, k = world.SIDE, int((tokens.shape[-1] // (4 * CHANNELS)) ** 0.5)
    rows = tokens.reshape(-1, cells, cells, k, k, 4 * CHANNELS).transpose(2, 3).reshape(len(tokens), -1, 4 * CHANNELS)
    return diffusers.FluxPipeline._unpack_latents(rows, SIDE, SIDE, SIDE // (2 * cells * k))


def save(pipe: Any, folder: Path) -> Path:
    """Write a pipeline as any hub pipeline is written, in half precision, with what its calls want (painter.json)."""
    copy.deepcopy(pipe).to(dtype=torch.float16).save_pretrained(folder)
    length = pipe.tokenizer_2.model_max_length
    wants = {"size": str(SIDE), "steps": STEPS, "max_length": length, "batch_size": 64}
    (folder / pipelines.DEFAULTS).write_text(json.dumps(wants) + "\n", encoding="utf-8")
    for config in folder.rglob("*.json"):  # diffusers notes in which folder of this machine it found a part
        settings = json.loads(config.read_text(encoding="utf-8"))
        if settings.pop("_name_or_path", None) is not None:
            config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return folder
