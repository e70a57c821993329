"""Small seeded models, one per kind of attention that exporters write, for the tests of the rewriter.

The weights of Q and K are enlarged, so that the scores spread over several nats and a wrong scale, mask or key shows in
the output; with the usual initialization every row of P is nearly uniform and hides such an error.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

HIDDEN, HEADS, LAYERS, VOCABULARY = 64, 4, 2, 100
_QK_GAIN, _V_GAIN = 10.0, 4.0
_QK_NAMES = ("query", "key", "q_lin", "k_lin", "q_proj", "k_proj", "c_attn")
_V_NAMES = ("value", "v_lin", "v_proj", "c_proj", "o_proj")

TOKENS = {0: "batch", 1: "seq"}


@dataclass(frozen=True)
class Case:
    """A model to export.

    Attributes:
        module: the model; takes and returns tensors by position.
        inputs: example inputs by name.
        dynamic: dynamic axes of each input.
        attentions: how many there are.
    """

    module: nn.Module
    inputs: dict[str, torch.Tensor]
    dynamic: dict[str, dict[int, str]]
    attentions: int
    outputs: list[str] = field(default_factory=lambda: ["output"])


class _Call(nn.Module):
    """Calls ``function(model, *tensors)``: gives a transformers model positional tensors in and one tensor out."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]):
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.function(self.model, *tensors)


def _prepare(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and any(part in name for part in _QK_NAMES):
                parameter.mul_(_QK_GAIN)
            elif parameter.dim() >= 2 and any(part in name for part in _V_NAMES):
                parameter.mul_(_V_GAIN)
    return model.eval().to(dtype)


def _padded(left: bool) -> torch.Tensor:
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, : 3 if left else 12] = 0 if left else 1
    if not left:
        mask[0, -3:] = 0
    return mask


def _ids() -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (2, 12))


_ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": 64,
}
_DECODER = {**_ENCODER, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def _encoder(model: nn.Module, dtype: torch.dtype) -> Case:
    def call(m: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return m(input_ids=ids, attention_mask=mask).last_hidden_state

    inputs = {"input_ids": _ids(), "attention_mask": _padded(left=False)}
    return Case(_Call(_prepare(model, dtype), call), inputs, dict.fromkeys(inputs, TOKENS), LAYERS)


def _decoder(model: nn.Module, dtype: torch.dtype) -> Case:
    def call(m: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return m(input_ids=ids, attention_mask=mask, use_cache=False).logits

    inputs = {"input_ids": _ids(), "attention_mask": _padded(left=True)}
    return Case(_Call(_prepare(model, dtype), call), inputs, dict.fromkeys(inputs, TOKENS), LAYERS)


def bert(attention: str, dtype: torch.dtype) -> Case:
    """BERT: an encoder with a padding mask."""
    from transformers import BertConfig, BertModel

    return _encoder(BertModel(BertConfig(**_ENCODER, attn_implementation=attention)), dtype)


def minilm(attention: str, dtype: torch.dtype) -> Case:
    """A sentence embedder as all-MiniLM: BERT, mean pooling over the mask, normalization."""
    from transformers import BertConfig, BertModel

    def call(m: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        tokens = m(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).to(tokens.dtype)
        return nn.functional.normalize((tokens * weight).sum(1) / weight.sum(1).clamp(min=1e-9), dim=-1)

    case = _encoder(BertModel(BertConfig(**_ENCODER, attn_implementation=attention)), dtype)
    assert isinstance(case.module, _Call)
    case.module.function = call
    return case


def roberta(attention: str, dtype: torch.dtype) -> Case:
    """RoBERTa: BERT with positions counted over the mask."""
    from transformers import RobertaConfig, RobertaModel

    return _encoder(RobertaModel(RobertaConfig(**_ENCODER, attn_implementation=attention)), dtype)


def distilbert(attention: str, dtype: torch.dtype) -> Case:
    """DistilBERT."""
    from transformers import DistilBertConfig, DistilBertModel

    config = DistilBertConfig(
        vocab_size=VOCABULARY,
        dim=HIDDEN,
        n_layers=LAYERS,
        n_heads=HEADS,
        hidden_dim=HIDDEN,
        max_position_embeddings=64,
        attn_implementation=attention,
    )
    return _encoder(DistilBertModel(config), dtype)


def vit(attention: str, dtype: torch.dtype) -> Case:
    """ViT: no mask, a static length."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=HIDDEN,
        image_size=32,
        patch_size=8,
        attn_implementation=attention,
    )
    module = _Call(_prepare(ViTModel(config), dtype), lambda m, x: m(pixel_values=x).last_hidden_state)
    return Case(module, {"pixel_values": torch.randn(2, 3, 32, 32).to(dtype)}, {"pixel_values": {0: "batch"}}, LAYERS)


def gpt2(attention: str, dtype: torch.dtype) -> Case:
    """GPT-2: causal, Q, K and V from one projection."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation=attention,
    )
    return _decoder(GPT2LMHeadModel(config), dtype)


def llama(attention: str, dtype: torch.dtype) -> Case:
    """Llama: causal, two key heads for four query heads, rotary embedding in front."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**_DECODER, num_key_value_heads=2, attn_implementation=attention)
    return _decoder(LlamaForCausalLM(config), dtype)


MODELS = {f.__name__: f for f in (bert, minilm, roberta, distilbert, vit, gpt2, llama)}


def build(name: str, attention: str = "eager", dtype: torch.dtype = torch.float32) -> Case:
    """Return a model with seeded weights and inputs.

    Args:
        name: a key of ``MODELS``.
        attention: "eager" (products and softmax written out) or "sdpa" (torch's fused attention).
        dtype: type of the weights.
    """
    torch.manual_seed(0)
    return MODELS[name](attention, dtype)


def export(case: Case, path: Path, exporter: str = "dynamo", opset: int = 18) -> None:
    """Export a case with dynamic axes.

    Args:
        case: the model.
        path: file to write.
        exporter: "dynamo", or "torchscript" for the exporter of torch before 2.9.
        opset: version of ai.onnx.
    """
    arguments, names = tuple(case.inputs.values()), list(case.inputs)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        if exporter == "torchscript":
            torch.onnx.export(
                case.module,
                arguments,
                path,
                dynamo=False,
                opset_version=opset,
                input_names=names,
                output_names=case.outputs,
                dynamic_axes=case.dynamic,
            )
            return
        shapes = tuple(dict.fromkeys(case.dynamic[n], torch.export.Dim.DYNAMIC) for n in names)
        torch.onnx.export(
            case.module,
            arguments,
            path,
            dynamo=True,
            opset_version=opset,
            input_names=names,
            output_names=case.outputs,
            dynamic_shapes=(shapes,),
            external_data=False,
            verbose=False,
        )


def feeds(case: Case) -> dict[str, dict[str, np.ndarray]]:
    """Return named inputs that hurt: padding on either side, holes, a row without any key, another shape."""
    base = {name: tensor.numpy() for name, tensor in case.inputs.items()}
    if "attention_mask" not in base:
        return {"as exported": base, "other batch": {n: np.concatenate([x, x[:1] * 0.5]) for n, x in base.items()}}
    rng = np.random.default_rng(0)

    def tokens(batch: int, seqlen: int, mask: np.ndarray) -> dict[str, np.ndarray]:
        return {"input_ids": rng.integers(3, VOCABULARY, (batch, seqlen)), "attention_mask": mask.astype(np.int64)}

    right, left = np.ones((3, 17)), np.ones((3, 17))
    right[0, -5:], right[1, -1:] = 0, 0
    left[0, :5], left[1, :1] = 0, 0
    holes = rng.random((2, 23)) > 0.4
    holes[:, 0] = True
    empty = np.ones((2, 9))
    empty[0] = 0
    return {
        "as exported": base,
        "right-padded": tokens(3, 17, right),
        "left-padded": tokens(3, 17, left),
        "holes": tokens(2, 23, holes),
        "fully masked row": tokens(2, 9, empty),
    }
