"""Images in transformers, beyond plain classifiers: detectors, segmenters, readers of documents, towers with text."""

from __future__ import annotations

from typing import Any

import torch
import transformers as t

from zoo.case import Call, Case, Input, define, prepare
from zoo.transformer_parts import BERT, HEADS, HIDDEN, LAYERS, VIT, vision_case

# ---- towers ----


@define("vision")
def siglip2(attention: str) -> Case:
    """Patches of an image of any shape, padded, with a mask; a pooling head whose query is a parameter."""
    config = t.Siglip2VisionConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=64,
        patch_size=4,
        num_patches=16,
        attn_implementation=attention,
    )

    def function(m: Any, patches: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        shapes = torch.tensor([[4, 4], [2, 8]])
        return m(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shapes).pooler_output

    inputs = {"patches": Input("float", (2, 16, 48)), "mask": Input("mask", (2, 16))}
    model = prepare(t.Siglip2VisionModel(config), gain=2)  # its weights start out larger
    return Case(Call(model, function), inputs, {}, LAYERS + 1, peer=("clip", HEADS, HIDDEN))


@define("vision")
def owlv2(attention: str) -> Case:
    """Detection by text: a causal tower for the queries, a tower for the image."""
    config = t.Owlv2Config(
        text_config={**BERT, "max_position_embeddings": 16},
        vision_config=VIT,
        projection_dim=HIDDEN,
        attn_implementation=attention,
    )

    def function(m: Any, ids: torch.Tensor, mask: torch.Tensor, pixels: torch.Tensor) -> Any:
        out = m(input_ids=ids, attention_mask=mask, pixel_values=pixels)
        return out.logits, out.pred_boxes

    inputs = {
        "input_ids": Input("ids", ("texts", 12)),
        "attention_mask": Input("mask", ("texts", 12)),
        "pixel_values": Input("float", (1, 3, 32, 32)),
    }
    model = prepare(t.Owlv2ForObjectDetection(config), gain=2)  # its weights start out larger
    return Case(Call(model, function), inputs, {"texts": 2}, 2 * LAYERS, peer=("clip", HEADS, HIDDEN))


@define("vision", ("eager",))
def depth_anything(attention: str) -> Case:
    """DINOv2 with its layers' values taken in between, and convolutions behind."""
    backbone = t.Dinov2Config(
        **{k: v for k, v in VIT.items() if k not in ("intermediate_size", "num_hidden_layers")},
        num_hidden_layers=4,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    config = t.DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=8,
        reassemble_hidden_size=HIDDEN,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        head_hidden_size=8,
        depth_estimation_type="metric",
        max_depth=10,
    )
    module = Call(prepare(t.DepthAnythingForDepthEstimation(config)), lambda m, x: m(x).predicted_depth)
    inputs = {"pixel_values": Input("float", ("batch", 3, 32, 32))}
    return Case(module, inputs, {"batch": 2}, 4, peer=("vit", HEADS, HIDDEN))


@define("vision", ("eager",))
def hiera(attention: str) -> Case:
    """Attention within units of five dimensions, whose queries are pooled at the stages' borders."""
    config = t.HieraConfig(
        embed_dim=16, image_size=[64, 64], depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8], patch_padding=[3, 3]
    )
    return vision_case(t.HieraModel(config), 4, 64)


@define("vision")
def sam2_vision(attention: str) -> Case:
    """Hiera as in SAM 2: windows, some global layers, pooled queries."""
    backbone = t.Sam2HieraDetConfig(
        hidden_size=16,
        num_attention_heads=1,
        image_size=[64, 64],
        blocks_per_stage=[1, 2, 2, 1],
        embed_dim_per_stage=[16, 32, 64, 128],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 4, 2],
        global_attention_blocks=[4],
        window_positional_embedding_background_size=[4, 4],
    )
    config = t.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[128, 64, 32, 16],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=32,
        attn_implementation=attention,
    )
    return vision_case(t.Sam2VisionModel(config), 6, 64, "sam2")


@define("vision", ("eager",))
def davit(attention: str) -> Case:
    """The image tower of Florence-2: windows, and channels that attend channels."""
    from transformers.models.florence2.modeling_florence2 import Florence2VisionBackbone

    config = t.Florence2Config(
        vision_config={
            "depths": [1, 1],
            "patch_size": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
            "embed_dim": [32, 64],
            "num_heads": [2, 4],
            "num_groups": [2, 4],
            "window_size": 4,
        }
    ).vision_config
    module = Call(prepare(Florence2VisionBackbone(config)), lambda m, x: m(x)[0])
    inputs = {"pixel_values": Input("float", ("batch", 3, 64, 64))}
    return Case(module, inputs, {"batch": 2}, 4, peer=("vit", HEADS, HIDDEN))


# ---- detectors ----

_RESNET: dict[str, Any] = {
    "embedding_size": 16,
    "hidden_sizes": [16, 16, 32, 32],
    "depths": [1, 1, 1, 1],
    "out_features": ["stage2", "stage3", "stage4"],
    "layer_type": "basic",
}


@define("vision")
def rt_detr(attention: str) -> Case:
    """One layer on the smallest map, and queries that attend each other; the image they sample."""
    config = t.RTDetrConfig(
        backbone_config=t.RTDetrResNetConfig(**_RESNET),
        encoder_hidden_dim=HIDDEN,
        encoder_in_channels=[16, 32, 32],
        encoder_ffn_dim=64,
        encoder_attention_heads=HEADS,
        d_model=HIDDEN,
        num_queries=10,
        decoder_in_channels=[HIDDEN] * 3,
        decoder_ffn_dim=64,
        decoder_layers=LAYERS,
        decoder_attention_heads=HEADS,
        num_denoising=0,
        attn_implementation={"": attention, "backbone_config": "eager"},
    )
    module = Call(prepare(t.RTDetrModel(config)), lambda m, x: m(pixel_values=x).last_hidden_state)
    inputs = {"pixel_values": Input("float", ("batch", 3, 64, 64))}
    return Case(module, inputs, {"batch": 2}, 1 + LAYERS, peer=("bart", HEADS, HIDDEN))


@define("vision")
def yolos(attention: str) -> Case:
    config = t.YolosConfig(
        **{**VIT, "image_size": [32, 32]},
        num_detection_tokens=5,
        use_mid_position_embeddings=False,
        attn_implementation=attention,
    )
    return vision_case(t.YolosModel(config))


@define("vision", ("eager",))
def grounding_dino_text(attention: str) -> Case:
    """The layer with which Grounding DINO's text attends itself, under a mask of its phrases."""
    from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoTextEnhancerLayer

    config = t.GroundingDinoConfig(d_model=HIDDEN, encoder_ffn_dim=128, encoder_attention_heads=HEADS * 2)
    module = Call(prepare(GroundingDinoTextEnhancerLayer(config)), lambda m, x, keep: m(x, attention_masks=keep)[0])
    inputs = {"text": Input("float", ("batch", "seq", HIDDEN)), "keep": Input("keep", ("batch", "seq", "seq"))}
    return Case(module, inputs, {"batch": 2, "seq": 12}, 1, peer=("bert", HEADS, HIDDEN))


@define("negative", ("eager",), negative=True)
def grounding_dino_fusion(attention: str) -> Case:
    """Image and text attend each other through one product, clamped: its scores are used twice."""
    from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoBiMultiHeadAttention

    config = t.GroundingDinoConfig(d_model=HIDDEN, encoder_ffn_dim=128, encoder_attention_heads=HEADS * 2)

    def function(m: Any, image: torch.Tensor, text: torch.Tensor, drop: torch.Tensor) -> Any:
        seen, read = m(image, text, None, drop)
        return seen[0], read[0]

    inputs = {
        "image": Input("float", ("batch", "patches", HIDDEN)),
        "text": Input("float", ("batch", "seq", HIDDEN)),
        "drop": Input("drop", ("batch", "seq")),
    }
    module = Call(prepare(GroundingDinoBiMultiHeadAttention(config)), function)
    return Case(module, inputs, {"batch": 2, "patches": 20, "seq": 12}, 0, peer=("bert", HEADS, HIDDEN))


# ---- documents ----


@define("vision", ("eager",))
def trocr(attention: str) -> Case:
    """An image encoder and a text decoder that attends it."""
    encoder = t.ViTConfig(**VIT)
    decoder = t.TrOCRConfig(
        vocab_size=100,
        d_model=HIDDEN,
        decoder_layers=LAYERS,
        decoder_attention_heads=HEADS,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        is_decoder=True,
        add_cross_attention=True,
    )
    config = t.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    model = prepare(t.VisionEncoderDecoderModel(config))

    def function(m: Any, pixels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return m(pixel_values=pixels, decoder_input_ids=ids, use_cache=False).logits

    inputs = {"pixel_values": Input("float", ("batch", 3, 32, 32)), "input_ids": Input("ids", ("batch", "target"))}
    return Case(Call(model, function), inputs, {"batch": 2, "target": 7}, 3 * LAYERS, peer=("bart", HEADS, HIDDEN))


@define("vision", ("eager",))
def layoutlmv3(attention: str) -> Case:
    """Scores are divided before the bias of distance and place is added; a softmax that subtracts its own maximum."""
    config = t.LayoutLMv3Config(
        **BERT,
        pad_token_id=0,
        coordinate_size=16,
        shape_size=0,
        max_2d_position_embeddings=16,
        rel_pos_bins=8,
        max_rel_pos=16,
        rel_2d_pos_bins=8,
        max_rel_2d_pos=16,
        visual_embed=False,
    )

    def function(m: Any, ids: torch.Tensor, mask: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        return m(input_ids=ids, attention_mask=mask, bbox=boxes).last_hidden_state

    inputs = {
        "input_ids": Input("ids", ("batch", "seq")),
        "attention_mask": Input("mask", ("batch", "seq")),
        "bbox": Input("classes", ("batch", "seq", 4)),
    }
    module = Call(prepare(t.LayoutLMv3Model(config)), function)
    return Case(module, inputs, {"batch": 2, "seq": 12}, LAYERS, peer=("bert", HEADS, HIDDEN))
