"""What a model of the zoo is: a module or a graph, its inputs as data, and how many attentions are in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
import torch
from torch import nn

VOCABULARY = 100

Kind = Literal["float", "ids", "mask", "positions", "keep", "drop", "classes"]
MaskStyle = Literal["right-padded", "left-padded", "holes", "fully masked row"]


@dataclass(frozen=True)
class Input:
    """One input.

    Attributes:
        kind: float is N(0, 1); ids are tokens; mask is 1 where a token counts; positions count from the length of the
            past; keep is True and drop is False where a key counts; classes are small integers.
        axes: sizes; a string names a dynamic axis.
    """

    kind: Kind
    axes: tuple[int | str, ...]


@dataclass
class Case:
    """A model with seeded weights.

    Attributes:
        model: a module that takes its inputs by position, or a finished graph.
        inputs: by name, in order.
        sizes: of the dynamic axes when exported. ``total`` is past + seq, where both are there.
        attentions: how many there are in truth, counted by hand.
        outputs: names; None leaves them to the exporter.
        peer: model type, heads and hidden size, which ONNX Runtime's optimizer asks its user for.
        unquantized: what a quantized model was made from, for the same inputs.
    """

    model: nn.Module | onnx.ModelProto
    inputs: dict[str, Input]
    sizes: dict[str, int]
    attentions: int
    outputs: list[str] | None = None
    peer: tuple[str, int, int] = ("bert", 0, 0)
    dtype: torch.dtype = torch.float32
    unquantized: onnx.ModelProto | None = None

    def feed(self, sizes: dict[str, int], style: MaskStyle = "right-padded", seed: int = 0) -> dict[str, np.ndarray]:
        """Return one array for each input."""
        sizes = {**self.sizes, **sizes}
        if "total" in self.sizes:
            sizes["total"] = sizes["past"] + sizes["seq"]
        rng = np.random.default_rng(seed)
        floating = {torch.float16: np.float16}.get(self.dtype, np.float32)
        feed = {}
        for name, spec in self.inputs.items():
            shape = tuple(sizes[a] if isinstance(a, str) else a for a in spec.axes)
            feed[name] = _array(spec.kind, shape, style, sizes.get("past", 0), rng, floating)
        return feed

    def feeds(self) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Yield labelled inputs that hurt: two shapes, padding on either side, holes, a row without any key."""
        yield "as exported", self.feed({})
        if self.sizes:
            yield (
                "other sizes",
                self.feed({name: size + 2 + 3 * i for i, (name, size) in enumerate(self.sizes.items())}),
            )
        if any(spec.kind in ("mask", "keep", "drop") for spec in self.inputs.values()):
            for style in ("left-padded", "holes", "fully masked row"):
                yield style, self.feed({}, style, seed=1)


def _array(
    kind: Kind, shape: tuple[int, ...], style: MaskStyle, past: int, rng: np.random.Generator, floating: Any
) -> np.ndarray:
    if kind == "float":
        return rng.standard_normal(shape).astype(floating)
    if kind == "ids":
        return rng.integers(3, VOCABULARY, shape)
    if kind == "classes":
        return rng.integers(0, 8, shape)
    if kind == "positions":
        return np.broadcast_to(np.arange(past, past + shape[-1]), shape).astype(np.int64)
    counts = _mask(shape, style, rng)
    return counts.astype(np.int64) if kind == "mask" else counts if kind == "keep" else ~counts


def _mask(shape: tuple[int, ...], style: MaskStyle, rng: np.random.Generator) -> np.ndarray:
    """Return which keys count; the last axis is the keys', the first the batch."""
    if not shape:  # a switch: on, and off
        return np.array(style in ("right-padded", "left-padded"))
    mask = np.ones(shape, bool)
    if style == "holes":
        mask = rng.random(shape) > 0.4
        mask[..., 0] = True
    elif style == "right-padded":
        mask[0, ..., -3:] = False
    elif style == "left-padded":
        mask[0, ..., :3] = False
    else:
        mask[0] = False
    return mask


class Call(nn.Module):
    """Calls ``function(model, *tensors)``: gives a model positional tensors in, and tensors out."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]):
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.function(self.model, *tensors)


# With the usual initialization every row of P is nearly uniform, which hides a wrong scale, mask or key.
_QK = re.compile(
    r"query|key|q_proj|k_proj|q_lin|k_lin|c_attn|qkv|\.[qk]\.|Attention\.[qk]\b|to_[qk]\b|Wqkv|query_key_value"
)
_V = re.compile(r"value|v_proj|v_lin|to_v\b|out_proj|o_proj|c_proj|to_out|in_proj")  # in_proj starts out larger


def prepare(model: nn.Module, dtype: torch.dtype = torch.float32, gain: float = 8) -> nn.Module:
    """Enlarge the projections' weights, so that scores spread over several nats; return the model for inference.

    The gain suits weights that start at a standard deviation of 0.02. Far more spread makes every row of P one-hot,
    where the least error in a score picks another key.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and _QK.search(name):
                parameter.mul_(gain)
            elif parameter.dim() >= 2 and _V.search(name):
                parameter.mul_(3)
    return model.eval().to(dtype)


@dataclass(frozen=True)
class Definition:
    """An entry of the registry.

    Attributes:
        build: takes the attention implementation, "eager" or "sdpa"; modules without a choice ignore it.
        implementations: which of them there are.
        negative: there is a softmax, but nothing that may be fused.
        extra: further (exporter, opset) beside the usual three.
        requires: a library that a machine need not have; without it the model is left out.
    """

    name: str
    family: str
    build: Callable[[str], Case]
    implementations: tuple[str, ...]
    negative: bool = False
    extra: tuple[tuple[str, int], ...] = field(default=())
    requires: str = ""


DEFINITIONS: dict[str, Definition] = {}


def define(
    family: str, implementations: tuple[str, ...] = ("eager", "sdpa"), **options: Any
) -> Callable[[Callable[[str], Case]], Callable[[str], Case]]:
    """Register a function under its own name."""

    def register(function: Callable[[str], Case]) -> Callable[[str], Case]:
        name = function.__name__
        DEFINITIONS[name] = Definition(name, family, function, implementations, **options)
        return function

    return register
