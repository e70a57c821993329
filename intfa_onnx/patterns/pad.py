"""Head sizes that the operator does not know, brought to the next one that it does by channels of zeros.

Zeros add nothing to Q K^T, nor to the largest magnitude of a row, and the channels that they add to Y are cut off: the
result is the same, exactly. It costs a copy of Q, K, V and Y.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from intfa_onnx import op_schema
from intfa_onnx.patterns.match import RESULT, AttentionMatch, Call, Const, Operand, substitute


def pad_heads(match: AttentionMatch) -> AttentionMatch:
    """Return a match whose head sizes are multiples of ``HEAD_DIM_STEP``; the same one where they are already.

    Args:
        match: a match with four axes, or three with the heads packed, and both head sizes known.
    """
    size, size_v = match.head_dim, match.head_dim_v
    assert size is not None
    assert size_v is not None
    wide, wide_v = _rounded_up(size), _rounded_up(size_v)
    if (wide, wide_v) == (size, size_v):
        return match
    packed = match.rank == 3
    heads, kv_heads = (match.attributes.get(n, 0) if packed else 0 for n in ("q_num_heads", "kv_num_heads"))
    inputs = dict(match.inputs)
    for name, of_heads, old, new in (
        ("Q", heads, size, wide),
        ("K", kv_heads, size, wide),
        ("V", kv_heads, size_v, wide_v),
        ("past_key", 0, size, wide),
        ("past_value", 0, size_v, wide_v),
    ):
        if name in inputs:
            inputs[name] = _padded(inputs[name], of_heads, old, new)
    result = _cut(RESULT, heads, wide_v, size_v)
    scale = match.attributes.get("scale") or 1 / math.sqrt(size)  # 0, the default, would mean the padded size
    padded = {"padded head size": (size, wide), "padded head size of V": (size_v, wide_v)}
    if size == size_v:
        del padded["padded head size of V"]
    notes = tuple(f"{what} {old} -> {new}" for what, (old, new) in padded.items() if old != new)
    return replace(
        match,
        inputs=inputs,
        attributes={**match.attributes, "scale": scale},
        outputs={value: substitute(x, result) for value, x in match.outputs.items()},
        presents=(_cut(RESULT, 0, wide, size), _cut(RESULT, 0, wide_v, size_v)),
        head_dim=wide,
        head_dim_v=wide_v,
        notes=(*match.notes, *notes),
    )


def _rounded_up(size: int) -> int:
    step = op_schema.HEAD_DIM_STEP
    return -(-size // step) * step


def _padded(x: Operand, heads: int, old: int, new: int) -> Operand:
    """[..., old] -> [..., new], or [B, S, heads*old] -> [B, S, heads*new] where heads are packed."""
    if old == new:
        return x
    if heads:
        x = Call("Reshape", (x, _sizes(0, 0, heads, old)))
    x = Call("Pad", (x, _sizes(*[0] * 7, new - old)))
    return Call("Reshape", (x, _sizes(0, 0, heads * new))) if heads else x


def _cut(x: Operand, heads: int, old: int, new: int) -> Operand:
    """[..., old] -> [..., new], or [B, S, heads*old] -> [B, S, heads*new] where heads are packed."""
    if old == new:
        return x
    if heads:
        x = Call("Reshape", (x, _sizes(0, 0, heads, old)))
    x = Call("Slice", (x, _sizes(0), _sizes(new), _sizes(-1)))
    return Call("Reshape", (x, _sizes(0, 0, heads * new))) if heads else x


def _sizes(*sizes: int) -> Const:
    return Const(np.array(sizes, np.int64))
