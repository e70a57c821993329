"""Models of timm and diffusers, which a machine need not have: image classifiers, denoisers."""

from __future__ import annotations

from typing import Any

import torch

from zoo.case import Call, Case, Input, define, prepare

_IMAGE = {"batch": 2}


# ---- timm ----


def _timm(name: str, attention: str, attentions: int, size: int = 32, gain: float = 8, **options: Any) -> Case:
    import timm
    import timm.layers

    timm.layers.set_fused_attn(attention == "sdpa")
    model = timm.create_model(name, pretrained=False, **options)
    inputs = {"x": Input("float", ("batch", 3, size, size))}
    return Case(prepare(model, gain=gain), inputs, _IMAGE, attentions, peer=("vit", 0, 0))


@define("timm", requires="timm")
def timm_vit(attention: str) -> Case:
    return _timm("vit_tiny_patch16_224", attention, 2, img_size=32, depth=2, embed_dim=64, num_heads=4)


@define("timm", requires="timm")
def timm_deit(attention: str) -> Case:
    return _timm("deit_tiny_distilled_patch16_224", attention, 2, img_size=32, depth=2, embed_dim=64, num_heads=4)


@define("timm", requires="timm")
def timm_swin(attention: str) -> Case:
    return _timm(
        "swin_tiny_patch4_window7_224",
        attention,
        4,
        size=64,
        img_size=64,
        window_size=4,
        depths=(2, 2),
        num_heads=(2, 4),
        embed_dim=32,
    )


@define("timm", requires="timm")
def timm_eva02(attention: str) -> Case:
    """Rotary positions of two dimensions."""
    return _timm("eva02_tiny_patch14_224", attention, 2, 28, img_size=28, depth=2, embed_dim=64, num_heads=4)


@define("timm", requires="timm")
def timm_maxvit(attention: str) -> Case:
    """Attention in blocks and over a grid, two in each of 11 layers."""
    return _timm("maxvit_rmlp_pico_rw_256", attention, 22, 64, gain=2, img_size=64)


@define("negative", ("torch",), negative=True, requires="timm")
def timm_mobilevitv2(_: str) -> Case:
    """A softmax that weighs the keys once for all queries."""
    return _timm("mobilevitv2_050", "eager", 0, 64)


# ---- diffusers ----


def _processors(model: Any, attention: str) -> Any:
    from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

    for module in model.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor() if attention == "eager" else AttnProcessor2_0())
    return prepare(model, gain=2)  # its weights start out larger


@define("diffusers", requires="diffusers")
def sd_unet(attention: str) -> Case:
    """Stable Diffusion: self and cross attention in four transformer blocks."""
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    inputs = {
        "sample": Input("float", ("batch", 4, 16, 16)),
        "timestep": Input("classes", ("batch",)),
        "states": Input("float", ("batch", "seq", 32)),
    }
    module = Call(_processors(model, attention), lambda m, x, s, e: m(x, s, encoder_hidden_states=e).sample)
    return Case(module, inputs, {"batch": 2, "seq": 7}, 8, peer=("unet", 0, 0))


@define("diffusers", requires="diffusers")
def dit(attention: str) -> Case:
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    )
    inputs = {
        "x": Input("float", ("batch", 4, 8, 8)),
        "timestep": Input("classes", ("batch",)),
        "label": Input("classes", ("batch",)),
    }
    module = Call(_processors(model, attention), lambda m, x, s, c: m(x, timestep=s, class_labels=c).sample)
    return Case(module, inputs, _IMAGE, 2, peer=("unet", 0, 0))


@define("diffusers", ("sdpa",), requires="diffusers")
def sd3(_: str) -> Case:
    """Text and image joined along the sequence and attended together."""
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=64,
        pooled_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )

    def function(m: Any, x: torch.Tensor, text: torch.Tensor, pooled: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        return m(x, text, pooled, step, return_dict=False)[0]

    inputs = {
        "x": Input("float", ("batch", 4, 8, 8)),
        "text": Input("float", ("batch", "seq", 32)),
        "pooled": Input("float", ("batch", 16)),
        "step": Input("classes", ("batch",)),
    }
    return Case(Call(prepare(model, gain=3), function), inputs, {"batch": 2, "seq": 7}, 2, peer=("unet", 0, 0))


@define("diffusers", ("sdpa",), requires="diffusers")
def flux(_: str) -> Case:
    """Joint attention with rotary positions, then layers of attention and feed-forward side by side."""
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    )

    def function(m: Any, x: torch.Tensor, text: torch.Tensor, pooled: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        image = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0))
        return m(x, text, pooled, step, image, torch.zeros(7, 3), return_dict=False)[0]

    inputs = {
        "x": Input("float", ("batch", 16, 4)),
        "text": Input("float", ("batch", 7, 32)),
        "pooled": Input("float", ("batch", 16)),
        "step": Input("float", ("batch",)),
    }
    return Case(Call(prepare(model, gain=3), function), inputs, _IMAGE, 2, peer=("unet", 0, 0))


@define("diffusers", requires="diffusers")
def vae(attention: str) -> Case:
    """One head as wide as the image has channels."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        block_out_channels=(32,),
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        latent_channels=4,
    )
    module = Call(_processors(model, attention), lambda m, x: m.decode(x).sample)
    return Case(module, {"x": Input("float", ("batch", 4, 8, 8))}, _IMAGE, 1, peer=("vae", 0, 0))
