"""One tiny pipeline a class: its real structure from configurations, random weights, no hub.

The tokenizers are trained here. Like the published ones, CLIP's puts a token before and after a text and reads 77, T5's
puts one after it, and Qwen's has the chat template of its family.
"""

from pathlib import Path

import diffusers as df
import torch
import transformers as hf
from tiny import CORPUS, published
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

WIDTH = 16
SIZE = 96  # pixels; FLUX.2 refuses references with a side under 64


def tokenizer(before: str = "", after: str = "", length: int = 512, template: str = "") -> hf.PreTrainedTokenizerFast:
    """A byte-level BPE; `before` and `after` are the tokens it puts around a text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        CORPUS * 4, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    )
    bpe.add_special_tokens(["<pad>", "<start>", "<end>", "<|im_start|>", "<|im_end|>"])
    if before or after:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{before} $A {after}".strip(),
            special_tokens=[(token, bpe.token_to_id(token)) for token in {before, after} - {""}],
        )
    tok = hf.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        model_max_length=length,
        model_input_names=["input_ids", "attention_mask"],
    )
    if template:
        tok.chat_template = published(template)
    return tok


def clip_tokenizer():
    return tokenizer("<start>", "<end>", 77)


def clip(tok, width: int = WIDTH, projection: bool = False):
    config = hf.CLIPTextConfig(
        vocab_size=len(tok), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, projection_dim=width, bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
    )  # fmt: skip
    return (hf.CLIPTextModelWithProjection if projection else hf.CLIPTextModel)(config)


def t5(tok):
    return hf.T5EncoderModel(
        hf.T5Config(
            vocab_size=len(tok), d_model=WIDTH, d_kv=8, d_ff=2 * WIDTH, num_layers=2, num_heads=2, dropout_rate=0.0,
            pad_token_id=tok.pad_token_id, eos_token_id=tok.eos_token_id,
        )
    )  # fmt: skip


def qwen3(tok):
    return hf.Qwen3ForCausalLM(
        hf.Qwen3Config(
            vocab_size=len(tok), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=3, head_dim=8,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=1024, pad_token_id=tok.pad_token_id,
            bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id,
        )
    )  # fmt: skip


def kl(levels: int = 2, channels: int = 4, **more):
    """An autoencoder that halves a picture `levels - 1` times."""
    return df.AutoencoderKL(
        block_out_channels=(8,) * levels, layers_per_block=1, norm_num_groups=4, latent_channels=channels,
        down_block_types=["DownEncoderBlock2D"] * levels, up_block_types=["UpDecoderBlock2D"] * levels, **more,
    )  # fmt: skip


def flux(kind: type):
    tok, tok2 = clip_tokenizer(), tokenizer(after="<end>")
    transformer = df.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=(2, 2, 4), guidance_embeds=True,
    )  # fmt: skip
    return kind(
        scheduler=df.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=kl(shift_factor=0.0, scaling_factor=1.0, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(tok), tokenizer=tok, text_encoder_2=t5(tok2), tokenizer_2=tok2, transformer=transformer,
    )  # fmt: skip


def klein(kind: type):
    tok = tokenizer(template="qwen3")
    return kind(
        scheduler=df.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=df.AutoencoderKLFlux2(
            block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4,
            down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        ),
        text_encoder=qwen3(tok), tokenizer=tok, is_distilled=True,
        transformer=df.Flux2Transformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=3 * WIDTH, axes_dims_rope=(4, 4, 4, 4),
            timestep_guidance_channels=16, guidance_embeds=False,
        ),
    )  # fmt: skip


def z_image(kind: type):
    tok = tokenizer(template="qwen3")
    transformer = df.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4], axes_lens=[1024, 64, 64],
    )  # fmt: skip
    return kind(
        scheduler=df.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=kl(shift_factor=0.0, scaling_factor=1.0),
        text_encoder=qwen3(tok).model,
        tokenizer=tok,
        transformer=transformer,
    )


def sana_sprint(kind: type):
    tok = tokenizer(before="<start>")
    gemma = hf.Gemma2Model(
        hf.Gemma2Config(
            vocab_size=len(tok), hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, pad_token_id=tok.pad_token_id, bos_token_id=tok.bos_token_id,
            eos_token_id=tok.eos_token_id,
        )
    )  # fmt: skip
    vae = df.AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.4,
    )  # fmt: skip
    transformer = df.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8,
        sample_size=32, qk_norm="rms_norm_across_heads", guidance_embeds=True,
    )  # fmt: skip
    return kind(tokenizer=tok, text_encoder=gemma, vae=vae, transformer=transformer, scheduler=df.SCMScheduler())


def unet(channels: int, attended: int, **more):
    return df.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=16, in_channels=channels, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4), cross_attention_dim=attended, norm_num_groups=4, **more,
    )  # fmt: skip


def sd(kind: type, channels: int):
    tok = clip_tokenizer()
    return kind(
        vae=kl(), text_encoder=clip(tok), tokenizer=tok, unet=unet(channels, WIDTH), safety_checker=None,
        scheduler=df.EulerAncestralDiscreteScheduler(steps_offset=1), feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def sdxl(kind: type, channels: int):
    tok, tok2 = clip_tokenizer(), clip_tokenizer()
    return kind(
        vae=kl(), text_encoder=clip(tok), text_encoder_2=clip(tok2, projection=True), tokenizer=tok, tokenizer_2=tok2,
        unet=unet(
            channels, 2 * WIDTH, addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTH, use_linear_projection=True,
            transformer_layers_per_block=(1, 1),
        ),
        scheduler=df.EulerAncestralDiscreteScheduler(timestep_spacing="trailing"),
    )  # fmt: skip


LAYERS = "text_encoder_out_layers=[1,2,3]"
PAINTERS = {  # class -> (how it is built, its options for a picture of SIZE in two steps)
    "FluxPipeline": (flux, "max_length=48"),
    "FluxKontextPipeline": (flux, "max_length=48"),
    "Flux2KleinPipeline": (klein, f"max_length=64&{LAYERS}"),
    "Flux2KleinKVPipeline": (klein, f"max_length=64&{LAYERS}"),
    "ZImagePipeline": (z_image, "max_length=64&guidance=0"),
    "SanaSprintPipeline": (sana_sprint, "max_length=48&use_resolution_binning=false"),
    "StableDiffusionXLPipeline": (lambda kind: sdxl(kind, 4), "guidance=0"),
    "StableDiffusionPipeline": (lambda kind: sd(kind, 4), "guidance=3"),
    "StableDiffusionInstructPix2PixPipeline": (lambda kind: sd(kind, 8), "guidance=3&image_guidance_scale=1.5"),
    "StableDiffusionXLInstructPix2PixPipeline": (lambda kind: sdxl(kind, 8), "guidance=3&negative_prompt=dull"),
}


def save(name: str, folder: Path, seed: int = 0) -> Path:
    """Build a class's tiny pipeline and save it as pipelines are saved."""
    torch.manual_seed(seed)
    pipe = PAINTERS[name][0](getattr(df, name))
    for part in pipe.components.values():
        for where, parameter in getattr(part, "named_parameters", lambda: ())():
            if parameter.dim() >= 2:  # what starts at zero, or at 0.02, would leave nothing of text and image
                torch.nn.init.normal_(parameter, std=1.5 / parameter[0].numel() ** 0.5)
            elif "pad_token" in where:
                torch.nn.init.zeros_(parameter)
    pipe.save_pretrained(folder)
    return folder


def spec(name: str, folder: Path) -> str:
    return f"{folder}?steps=2&size={SIZE}&{PAINTERS[name][1]}"
