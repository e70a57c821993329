"""Further encoders and vision towers of transformers: relative positions, latents, windows."""

from __future__ import annotations

from typing import Any

import torch
import transformers as t

from zoo.case import Call, Case, Input, define, prepare
from zoo.transformer_parts import (
    BERT,
    HEADS,
    HIDDEN,
    LAYERS,
    LLAMA,
    SEQ2SEQ,
    SPEECH,
    TEXT,
    VIT,
    encoder_case,
    seq2seq_case,
    vision_case,
)

# ---- text and sound ----


@define("encoder", ("eager",))
def mpnet(attention: str) -> Case:
    """A learned bias per head and distance, shared by the layers."""
    return encoder_case(t.MPNetModel(t.MPNetConfig(**BERT)))


@define("encoder")
def esm(attention: str) -> Case:
    """Rotary positions; the scale is on Q."""
    config = t.EsmConfig(
        **BERT, position_embedding_type="rotary", pad_token_id=1, mask_token_id=2, attn_implementation=attention
    )
    return encoder_case(t.EsmModel(config, add_pooling_layer=False))


@define("encoder")
def nomic_bert(attention: str) -> Case:
    return encoder_case(t.NomicBertModel(t.NomicBertConfig(**BERT, attn_implementation=attention)))


@define("encoder")
def electra(attention: str) -> Case:
    """A reranker: one number for a pair of texts."""
    config = t.ElectraConfig(**BERT, embedding_size=32, num_labels=1, attn_implementation=attention)
    case = encoder_case(t.ElectraForSequenceClassification(config))
    assert isinstance(case.model, Call)
    case.model.function = lambda m, ids, mask: m(input_ids=ids, attention_mask=mask).logits
    return case


@define("encoder")
def jina_embeddings_v3(attention: str) -> Case:
    config = t.JinaEmbeddingsV3Config(**BERT, pad_token_id=0, attn_implementation=attention)
    return encoder_case(t.JinaEmbeddingsV3Model(config))


@define("encoder")
def gte(attention: str) -> Case:
    return encoder_case(t.GteModel(t.GteConfig(**BERT, pad_token_id=0, attn_implementation=attention)))


@define("encoder")
def eurobert(attention: str) -> Case:
    """Llama's layers without the causal mask."""
    return encoder_case(t.EuroBertModel(t.EuroBertConfig(**LLAMA, mask_token_id=3, attn_implementation=attention)))


@define("encoder")
def embedding_gemma(attention: str) -> Case:
    """Gemma 3 in both directions: a window to either side."""
    config = t.Gemma3TextConfig(
        **LLAMA,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=6,
        use_bidirectional_attention=True,
        attn_implementation=attention,
    )
    return encoder_case(t.Gemma3TextModel(config))


@define("encoder", ("eager",))
def xlnet(attention: str) -> Case:
    """Content and position scores, shifted against each other by reshapes, added before the softmax; einsum."""
    config = t.XLNetConfig(vocab_size=100, d_model=HIDDEN, n_layer=LAYERS, n_head=HEADS, d_inner=64)
    return encoder_case(t.XLNetModel(config), gain=3)


@define("negative", ("eager",), negative=True)
def longformer(attention: str) -> Case:
    """A band of scores, cut out of products of overlapping chunks."""
    config = t.LongformerConfig(**BERT, attention_window=4, pad_token_id=0, sep_token_id=2)
    module = Call(prepare(t.LongformerModel(config)), lambda m, i, a: m(input_ids=i, attention_mask=a)[0])
    inputs = {"input_ids": Input("ids", (2, 12)), "attention_mask": Input("mask", (2, 12))}
    return Case(module, inputs, {}, 0, peer=("bert", HEADS, HIDDEN))


@define("encoder", ("eager",))
def perceiver(attention: str) -> Case:
    """Latents attend the input, then each other."""
    config = t.PerceiverConfig(
        num_latents=6,
        d_latents=HIDDEN,
        d_model=32,
        num_blocks=1,
        num_self_attends_per_block=2,
        num_self_attention_heads=HEADS,
        num_cross_attention_heads=HEADS,
    )
    module = Call(prepare(t.PerceiverModel(config)), lambda m, x, a: m(inputs=x, attention_mask=a).last_hidden_state)
    inputs = {"x": Input("float", ("batch", "seq", 32)), "mask": Input("mask", ("batch", "seq"))}
    return Case(module, inputs, TEXT, 3, peer=("bert", HEADS, HIDDEN))


@define("encoder")
def conformer(attention: str) -> Case:
    """Wav2Vec2-Conformer: relative positions as a second product, shifted by reshapes."""
    config = t.Wav2Vec2ConformerConfig(
        **SPEECH,
        position_embeddings_type="relative",
        conv_depthwise_kernel_size=3,
        attn_implementation=attention,
    )
    module = Call(prepare(t.Wav2Vec2ConformerModel(config)), lambda m, x: m(x).last_hidden_state)
    inputs = {"input_values": Input("float", ("batch", 800))}
    return Case(module, inputs, {"batch": 2}, LAYERS, peer=("bart", HEADS, HIDDEN))


@define("encoder-decoder")
def m2m100(attention: str) -> Case:
    """As NLLB; sinusoidal positions, counted over the tokens that are no padding."""
    config = t.M2M100Config(**SEQ2SEQ, max_position_embeddings=64, pad_token_id=0, attn_implementation=attention)
    return seq2seq_case(t.M2M100Model(config), "bart")


@define("encoder-decoder")
def marian_with_past(attention: str) -> Case:
    """A step of a decoder: its own past grows, that of the encoder's keys and values is complete."""

    def function(m: Any, ids: torch.Tensor, mask: torch.Tensor, *past: torch.Tensor) -> Any:
        own, cross = t.DynamicCache(), t.DynamicCache()
        for layer in range(LAYERS):
            own.update(past[4 * layer], past[4 * layer + 1], layer)
            cross.update(past[4 * layer + 2], past[4 * layer + 3], layer)
        cache = t.EncoderDecoderCache(own, cross)
        states = torch.zeros(ids.shape[0], mask.shape[1], HIDDEN)
        out = m(
            input_ids=ids,
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        )
        return (out.last_hidden_state, *(x for layer in own.layers for x in (layer.keys, layer.values)))

    config = t.MarianConfig(
        **SEQ2SEQ, max_position_embeddings=64, pad_token_id=0, decoder_start_token_id=0, attn_implementation=attention
    )
    inputs = {"input_ids": Input("ids", ("batch", 1)), "mask": Input("mask", ("batch", "source"))}
    for layer in range(LAYERS):
        for part, axis in (("own", "past"), ("cross", "source")):
            for what in ("key", "value"):
                inputs[f"past.{layer}.{part}.{what}"] = Input("float", ("batch", HEADS, axis, HIDDEN // HEADS))
    module = Call(prepare(t.MarianModel(config)).decoder, function)
    sizes = {"batch": 2, "source": 12, "past": 5}
    return Case(module, inputs, sizes, 2 * LAYERS, peer=("bart", HEADS, HIDDEN))


# ---- vision ----


@define("vision")
def beit(attention: str) -> Case:
    """A learned bias per head and offset."""
    config = t.BeitConfig(**VIT, use_relative_position_bias=True, attn_implementation=attention)
    return vision_case(t.BeitModel(config))


@define("vision", ("eager",))
def swinv2(attention: str) -> Case:
    """Cosine scores with a scale per head, a bias from a small network, shifted windows."""
    config = t.Swinv2Config(image_size=32, patch_size=2, embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=4)
    return vision_case(t.Swinv2Model(config), 4, peer="swin")


@define("vision")
def dinov3(attention: str) -> Case:
    """Rotary positions of two dimensions on the patches, none on class and registers."""
    config = t.DINOv3ViTConfig(**VIT, num_register_tokens=2, attn_implementation=attention)
    return vision_case(t.DINOv3ViTModel(config))


@define("vision", ("eager",))
def cvt(attention: str) -> Case:
    """Q, K and V by convolutions; the scale is that of the whole width."""
    config = t.CvtConfig(embed_dim=[16, 32, 64], num_heads=[1, 2, 4], depth=[1, 2, 3])
    return vision_case(t.CvtModel(config), 6, 64)


@define("vision", ("eager",))
def pvt_v2(attention: str) -> Case:
    config = t.PvtV2Config(
        image_size=64,
        hidden_sizes=[16, 32, 64, 64],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 4, 4],
        mlp_ratios=[2, 2, 2, 2],
    )
    return vision_case(t.PvtV2Model(config), 4, 64)


@define("vision")
def clip(attention: str) -> Case:
    """Both towers."""
    config = t.CLIPConfig(
        text_config={**BERT, "max_position_embeddings": 32, "eos_token_id": 2},
        vision_config=VIT,
        projection_dim=32,
        attn_implementation=attention,
    )

    def function(m: Any, ids: torch.Tensor, mask: torch.Tensor, pixels: torch.Tensor) -> Any:
        out = m(input_ids=ids, attention_mask=mask, pixel_values=pixels)
        return out.text_embeds, out.image_embeds

    inputs = {
        "input_ids": Input("ids", ("batch", "seq")),
        "attention_mask": Input("mask", ("batch", "seq")),
        "pixel_values": Input("float", ("images", 3, 32, 32)),
    }
    sizes = {"batch": 2, "seq": 12, "images": 3}
    model = prepare(t.CLIPModel(config), gain=2)  # its weights start out larger
    return Case(Call(model, function), inputs, sizes, 2 * LAYERS, peer=("clip", HEADS, HIDDEN))


@define("vision")
def sam_mask_decoder(attention: str) -> Case:
    """Tokens attend the image and the image the tokens; the inner width is half the outer."""
    config = t.SamMaskDecoderConfig(
        hidden_size=HIDDEN, mlp_dim=64, num_attention_heads=HEADS, iou_head_hidden_dim=32, attn_implementation=attention
    )
    from transformers.models.sam.modeling_sam import SamMaskDecoder

    def function(
        m: Any, image: torch.Tensor, positions: torch.Tensor, sparse: torch.Tensor, dense: torch.Tensor
    ) -> Any:
        return m(image, positions, sparse, dense, True)[:2]

    grid = ("batch", HIDDEN, 8, 8)
    inputs = {
        "image": Input("float", grid),
        "positions": Input("float", grid),
        "sparse": Input("float", ("batch", 1, "points", HIDDEN)),
        "dense": Input("float", grid),
    }
    module = Call(prepare(SamMaskDecoder(config), gain=1), function)  # its weights start out larger
    return Case(module, inputs, {"batch": 2, "points": 3}, 7, peer=("sam2", HEADS, HIDDEN))


@define("vision")
def qformer(attention: str) -> Case:
    """BLIP-2: learned queries attend each other and, in every other layer, the image."""
    config = t.Blip2QFormerConfig(**BERT, encoder_hidden_size=48, attn_implementation=attention)

    def function(m: Any, queries: torch.Tensor, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return m(query_embeds=queries, encoder_hidden_states=image, encoder_attention_mask=mask).last_hidden_state

    inputs = {
        "queries": Input("float", ("batch", 6, HIDDEN)),
        "image": Input("float", ("batch", "patches", 48)),
        "mask": Input("mask", ("batch", "patches")),
    }
    module = Call(prepare(t.Blip2QFormerModel(config)), function)
    return Case(module, inputs, {"batch": 2, "patches": 9}, LAYERS + 1, peer=("bert", HEADS, HIDDEN))
