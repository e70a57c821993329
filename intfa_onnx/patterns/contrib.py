"""Family: the attention operators of ONNX Runtime's own optimizer, domain ``com.microsoft``.

``MultiHeadAttention`` is read where Q, K and V are three packed tensors, ``Attention`` with its projection taken out;
both with every mask that their CPU kernels take, and without caches. The others are reported. What the inputs mean is
in ONNX Runtime's docs/ContribOperators.md, what a mask does to the scores was measured on its CPU kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from intfa_onnx.patterns.match import (
    RESULT,
    AttentionMatch,
    Call,
    Const,
    NoMatch,
    Operand,
    float_dtype,
    required,
    shape_slice,
    slice_of,
)
from intfa_onnx.patterns.view import View, int_attribute

NAME = "com.microsoft"

_OPERATORS = (
    "MultiHeadAttention",
    "Attention",
    "GroupQueryAttention",
    "PackedAttention",
    "PackedMultiHeadAttention",
    "DecoderMaskedSelfAttention",
    "DecoderMaskedMultiHeadAttention",
    "SparseAttention",
    "QAttention",
)
_INPUTS = {
    "MultiHeadAttention": ("query", "key", "value", "bias", "padding", "attention_bias"),
    "Attention": ("input", "weights", "bias", "padding", "past", "attention_bias"),
}


def anchors(graph: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    """Yield every attention operator of com.microsoft in the graph itself, bodies not included."""
    yield from (n for n in graph if n.domain == "com.microsoft" and n.op_type in _OPERATORS)


def match(view: View, anchor: ir.Node) -> AttentionMatch:
    """Read a MultiHeadAttention or an Attention.

    Raises:
        NoMatch: another operator, or one of the inputs and layouts that are not read.
    """
    if anchor.op_type not in _INPUTS:
        raise NoMatch(
            f"com.microsoft::{anchor.op_type} is not read yet. Rewrite the model before ONNX Runtime's optimizer"
        )
    names = _INPUTS[anchor.op_type]
    inputs = {n: v for n, v in zip(names, anchor.inputs, strict=False) if v is not None}
    if "past" in inputs or any(i is not None for i in anchor.inputs[len(names) :]):
        raise NoMatch(f"the caches of com.microsoft::{anchor.op_type} are not read yet")
    if any(o.uses() or o.is_graph_output() for o in anchor.outputs[1:]):
        raise NoMatch("an output besides the result is used")
    if int_attribute(anchor, "do_rotary", 0):
        raise NoMatch("a rotary embedding inside the operator is not read yet")
    read = _separate if anchor.op_type == "MultiHeadAttention" else _projected
    operands, sizes = read(view, anchor, inputs)
    source, keys = (inputs.get(n, inputs.get("input")) for n in ("query", "key"))
    heads = anchor.attributes["num_heads"].as_int()
    dtype = float_dtype(view.dtype(inputs.get("weights", source)))
    mask: Operand | None = inputs.get("attention_bias")
    if "padding" in inputs:
        padding = _padding(view, anchor, inputs["padding"], required(keys), dtype)
        mask = padding if mask is None else Call("Add", (mask, padding))
    if mask is not None:
        operands["attn_mask"] = mask
    attributes: dict[str, int | float] = {"q_num_heads": heads, "kv_num_heads": heads}
    if "scale" in anchor.attributes:
        attributes["scale"] = anchor.attributes["scale"].as_float()
    if int_attribute(anchor, "unidirectional", 0):
        if view.dims.dim(required(source), 1) != view.dims.dim(required(keys), 1):
            raise NoMatch("unidirectional, and Q and K are not provably of one length")
        attributes["is_causal"] = 1
    return AttentionMatch(
        anchor=anchor,
        family=NAME,
        place=anchor,
        inputs=operands,
        attributes=attributes,
        outputs={anchor.outputs[0]: RESULT},
        dtype=dtype,
        rank=3,
        head_dim=sizes[0] // heads if sizes[0] else None,
        head_dim_v=sizes[1] // heads if sizes[1] else None,
        num_heads=heads,
        kv_num_heads=heads,
        absorbed=("bshd",),
    )


_Read = tuple[dict[str, Operand], tuple[int | None, int | None]]  # Q, K and V; channels of Q and of V


def _separate(view: View, anchor: ir.Node, inputs: Mapping[str, ir.Value]) -> _Read:
    """Read Q, K and V where each is an input."""
    q, k, v = (inputs.get(n) for n in ("query", "key", "value"))
    if q is None or k is None or v is None or not view.rank(q) == view.rank(k) == view.rank(v) == 3:
        raise NoMatch("Q, K and V are not three tensors [batch, tokens, channels]")
    sizes = (view.dim(q, 2), view.dim(v, 2))
    operands: dict[str, Operand] = {"Q": q, "K": k, "V": v}
    if "bias" in inputs:
        for name, (start, end) in _parts(*sizes).items():
            operands[name] = Call("Add", (operands[name], slice_of(inputs["bias"], start, end)))
    return operands, sizes


def _projected(view: View, anchor: ir.Node, inputs: Mapping[str, ir.Value]) -> _Read:
    """Read Q, K and V where the operator projects its input by one matrix; each gets its part of that matrix."""
    source, weights = (required(inputs.get(n)) for n in ("input", "weights"))
    given = anchor.attributes["qkv_hidden_sizes"].as_ints() if "qkv_hidden_sizes" in anchor.attributes else None
    width = view.dim(weights, 1)
    if width is None:
        raise NoMatch("the size of the projection is not known statically")
    sizes = (given[0], given[2]) if given is not None else (width // 3, width // 3)
    operands: dict[str, Operand] = {}
    for name, (start, end) in _parts(*sizes).items():
        bounds = [Const(np.array([b], np.int64)) for b in (start, end, 1)]
        operands[name] = Call("MatMul", (source, Call("Slice", (weights, *bounds))))
        if "bias" in inputs:
            operands[name] = Call("Add", (operands[name], slice_of(inputs["bias"], start, end)))
    return operands, sizes


def _parts(of_q: int | None, of_v: int | None) -> dict[str, tuple[int, int]]:
    """Where Q, K and V are among the channels of a projection of all three."""
    if of_q is None or of_v is None:
        raise NoMatch("the size of the bias' parts is not known statically")
    return {"Q": (0, of_q), "K": (of_q, 2 * of_q), "V": (2 * of_q, 2 * of_q + of_v)}


def _padding(view: View, anchor: ir.Node, mask: ir.Value, keys: ir.Value, dtype: ir.DataType) -> Operand:
    """Return what a mask of tokens, or the lengths of right-padded rows, adds to the scores [B, H, Sq, Skv]."""
    rank, source = view.rank(mask), mask.producer()
    # Without shape inference for this domain: the second output of that operator has one length for each row.
    counted = source is not None and source.op_type == "EmbedLayerNormalization" and mask is source.outputs[1]
    if counted or (rank == 1 and view.dims.dim(mask, 0) == view.dims.dim(keys, 0)):
        length = Call("Squeeze", (shape_slice(keys, 1, 2),), {"axes": [0]})
        positions = Call("Range", (Const(np.array(0, np.int64)), length, Const(np.array(1, np.int64))))
        ends = Call("Unsqueeze", (Call("Cast", (mask,), {"to": int(ir.DataType.INT64)}),), {"axes": [1]})
        kept, axes = Call("Less", (positions, ends)), [1, 2]
    elif rank in (2, 3):
        # A mask of 0 and 1; what is positive is kept.
        kept, axes = Call("Greater", (mask, Const(np.array(0, np.int32)))), [1, 2] if rank == 2 else [1]
    else:
        raise NoMatch(f"a mask of rank {rank} is not read yet, unless it is the lengths of right-padded rows")
    filler = anchor.attributes["mask_filter_value"].as_float() if "mask_filter_value" in anchor.attributes else -1e4
    values = [Const(np.array(x, dtype.numpy())) for x in (0, filler)]
    return Call("Where", (Call("Unsqueeze", (kept,), {"axes": axes}), *values))
