"""Absorptions: what the fused node can do itself instead of nodes around it.

Each step is one function that maps a match to an equivalent match and may find nothing to do; none is needed for a
correct result. The cache and the layout have modules of their own, and so have masks that limit positions (``causal``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from intfa_onnx.patterns.cache import absorb_cache, may_keep_cache
from intfa_onnx.patterns.dims import Token
from intfa_onnx.patterns.layout import absorb_layout
from intfa_onnx.patterns.match import (
    RESULT,
    AttentionMatch,
    Call,
    Const,
    Operand,
    join,
    operation,
    shape_slice,
    substitute,
    transpose,
)
from intfa_onnx.patterns.scores import heads_apart
from intfa_onnx.patterns.view import View


def absorb(view: View, match: AttentionMatch) -> AttentionMatch:
    """Apply every absorption, then bring the operands to four axes (or three, with the heads packed)."""
    for step in _STEPS:
        match = step(view, match)
    return match


def _transposes_and_scales(view: View, match: AttentionMatch) -> AttentionMatch:
    """Compose Transposes (a key that is stored transposed) and take constant factors of Q and K into ``scale``."""
    inputs, factor, swapped = dict(match.inputs), 1.0, False
    scale = match.attributes.get("scale") or (match.head_dim and 1 / math.sqrt(match.head_dim))
    # A key that is also given out, as present_key, keeps its factor.
    scaled = () if not scale else ("Q",) if "past_key" in inputs or any(match.states) else ("Q", "K")
    for name in ("Q", "K", "V"):
        base, perm, own = _peel(view, inputs[name], match.rank, may_scale=name in scaled)
        factor *= own
        inputs[name] = transpose(base, perm)
        swapped |= name == "K" and perm[-1] == match.rank - 1
    attributes, absorbed = match.attributes, match.absorbed
    is_operator = match.place is match.anchor  # which has a scale of its own, and takes K as it is
    if scale and scale * factor < 0:  # the operator's is positive
        inputs["Q"], factor = Call("Neg", (inputs["Q"],)), -factor
    if scale and (factor != 1 or not is_operator):
        attributes, absorbed = {**attributes, "scale": scale * factor}, (*absorbed, "scale")
    if swapped and not is_operator:
        absorbed = (*absorbed, "k_transpose")
    return replace(match, inputs=inputs, attributes=attributes, absorbed=absorbed)


def _peel(view: View, x: Operand, rank: int, *, may_scale: bool) -> tuple[Operand, tuple[int, ...], float]:
    """Return (base, perm, factor) with ``x = transpose(base, perm) * factor``."""
    perm, factor = tuple(range(rank)), 1.0
    while (call := operation(x)) is not None:
        if call.op_type == "Transpose":
            inner = _perm(call, rank)
            perm, x = tuple(inner[p] for p in perm), call.inputs[0]
        elif call.op_type == "Identity":
            x = call.inputs[0]
        elif may_scale and (split := _constant_factor(view, call)) is not None:
            x, factor = split[0], factor * split[1]
        elif (inner_value := _swap_through_3d(view, x, rank)) is not None:
            swap = (*range(rank - 2), rank - 1, rank - 2)
            perm, x = tuple(swap[p] for p in perm), inner_value
        else:
            break
    return x, perm, factor


def _perm(transposed: Call, rank: int) -> tuple[int, ...]:
    return tuple(transposed.attributes.get("perm", range(rank)[::-1]))


def _constant_factor(view: View, call: Call) -> tuple[Operand, float] | None:
    """Return (x, c) for ``x * c``, ``c * x`` or ``x / (1 / c)`` with a constant."""
    if call.op_type not in ("Mul", "Div"):
        return None
    first, second = call.inputs
    for tensor, other in ((first, second), (second, first)) if call.op_type == "Mul" else ((first, second),):
        constant = view.scalar(other) if isinstance(other, ir.Value) else None
        # A constant of more axes than the tensor would add axes; [] and [1] are what exporters write.
        if constant and isinstance(other, ir.Value) and view.rank(other) in (0, 1):
            return tensor, constant if call.op_type == "Mul" else 1 / constant
    return None


def _swap_through_3d(view: View, x: Operand, rank: int) -> ir.Value | None:
    """Return y for ``Reshape(Transpose(Reshape(y, 3-D), (0, 2, 1)), shape of y with the last two axes swapped)``."""
    if not isinstance(x, ir.Value):
        return None
    middle = _input_of(x, "Reshape")
    inner = _input_of(middle, "Transpose")
    source = _input_of(inner, "Reshape")
    transposed = operation(middle)
    if source is None or inner is None or transposed is None or _perm(transposed, 3) != (0, 2, 1):
        return None
    before, merged, after = view.dims.of(source), view.dims.of(inner), view.dims.of(x)
    if before is None or after is None or merged is None or not len(before) == len(after) == rank or len(merged) != 3:
        return None
    is_swap = before[:-2] == after[:-2] and before[-1] == after[-2] and before[-2] == after[-1]
    return source if is_swap and merged[-2:] == before[-2:] else None


def _input_of(x: Operand | None, op_type: str) -> ir.Value | None:
    """Return the first input of the ``op_type`` that computes ``x``; None where something else does."""
    call = operation(x)
    source = call.inputs[0] if call is not None and call.op_type == op_type and call.inputs else None
    return source if isinstance(source, ir.Value) else None


def _grouped_queries(view: View, match: AttentionMatch) -> AttentionMatch:
    """Undo ``Reshape(Expand(Unsqueeze(k, 2)))``, which repeats each key head for its group of query heads."""
    if match.rank != 4 or "past_key" in match.inputs or any(match.states):
        return match
    bare = {name: _ungrouped(view, match.inputs[name]) for name in ("K", "V")}
    if bare["K"] is None or bare["V"] is None or bare["K"][1] != bare["V"][1]:
        return match
    inputs: dict[str, Operand] = {**match.inputs, "K": bare["K"][0], "V": bare["V"][0]}
    return replace(match, inputs=inputs, kv_num_heads=bare["K"][1], absorbed=(*match.absorbed, "gqa"))


def _ungrouped(view: View, x: Operand) -> tuple[ir.Value, int] | None:
    """Return the value with the original heads [B, Hkv, S, D], and Hkv, of one that repeats each in place."""
    call, after = operation(x), view.dims.of(x) if isinstance(x, ir.Value) else None
    source = call.inputs[0] if call is not None else None
    before = view.dims.of(source) if isinstance(source, ir.Value) else None
    if call is None or before is None or after is None or len(after) != 4 or not isinstance(source, ir.Value):
        return None
    if call.op_type in ("Expand", "Tile"):
        return (source, 1) if before[1:2] == (1,) and (before[0], *before[2:]) == (after[0], *after[2:]) else None
    if call.op_type == "Gather":
        heads, index = before[1], view.constant(call.inputs[1]) if isinstance(call.inputs[1], ir.Value) else None
        if call.attributes.get("axis", 0) not in (1, -3) or index is None or not isinstance(heads, int):
            return None
        return (source, heads) if index.tolist() == np.arange(heads).repeat(index.size // heads).tolist() else None
    return _ungrouped_by_reshape(view, source, before, after) if call.op_type == "Reshape" else None


def _ungrouped_by_reshape(
    view: View, wide: ir.Value, repeated: tuple[Token, ...], after: tuple[Token, ...]
) -> tuple[ir.Value, int] | None:
    """Read [B, Hkv, S, D] -> [B, Hkv, 1, S, D] -> ``wide`` [B, Hkv, G, S, D] -> [B, Hkv*G, S, D]."""
    apart = _input_of(wide, "Expand") or _input_of(wide, "Tile")
    source = _input_of(apart, "Unsqueeze") or _input_of(apart, "Reshape")
    before, one = view.dims.of(source), view.dims.of(apart)
    if source is None or before is None or one is None or len(before) != 4 or len(repeated) != 5:
        return None
    heads, group, total = before[1], repeated[2], after[1]
    if not (isinstance(heads, int) and isinstance(group, int) and isinstance(total, int)):
        return None
    repeats_heads = one == (*before[:2], 1, *before[2:]) and repeated[1] == heads and heads * group == total
    return (source, heads) if repeats_heads and before[3] == after[3] else None


def _zero_mask(view: View, match: AttentionMatch) -> AttentionMatch:
    """Leave out a mask of zeros."""
    mask = match.inputs.get("attn_mask")
    if not isinstance(mask, ir.Value) or view.dtype(mask) == ir.DataType.BOOL or not _is_zero(view, mask):
        return match
    inputs = {n: x for n, x in match.inputs.items() if n != "attn_mask"}
    return replace(match, inputs=inputs, absorbed=tuple(a for a in match.absorbed if a != "mask"))


def _is_zero(view: View, value: ir.Value | None) -> bool:
    constant, node = view.constant(value), value.producer() if value is not None else None
    if constant is not None:
        return not np.any(constant)
    if node is None or not node.inputs:
        return False
    if node.op_type == "ConstantOfShape":
        fill = node.attributes.get("value")
        return fill is None or not np.any(fill.as_tensor().numpy())
    if node.op_type in ("Identity", "Cast", "CastLike", "Expand", "Reshape", "Unsqueeze"):
        return _is_zero(view, node.inputs[0])
    return False


def _bool_mask(view: View, match: AttentionMatch) -> AttentionMatch:
    """Give ``Where(attend, 0, -inf)`` as the boolean mask it was made from."""
    call = operation(match.inputs.get("attn_mask"))
    if call is None or call.op_type != "Where":
        return match
    condition, kept, dropped = call.inputs
    if _number(view, kept) == 0 and _number(view, dropped) == -np.inf:
        return replace(match, inputs={**match.inputs, "attn_mask": condition})
    if _number(view, dropped) == 0 and _number(view, kept) == -np.inf:
        return replace(match, inputs={**match.inputs, "attn_mask": Call("Not", (condition,))})
    return match


def _number(view: View, x: Operand) -> float | None:
    if isinstance(x, Const):
        return float(x.array) if x.array.size == 1 else None
    return view.scalar(x) if isinstance(x, ir.Value) else None


def _four_axes(view: View, match: AttentionMatch) -> AttentionMatch:
    """Bring operands of another number of axes to [B, H, S, D]."""
    if match.rank == 4:
        return match
    if match.merged_heads is not None:
        return _heads_apart(view, match, match.merged_heads)
    inputs = dict(match.inputs)
    mask = inputs.pop("attn_mask", None)
    result: Operand
    if match.rank < 4:
        axes = {2: [0, 1], 3: [1]}[match.rank]
        inputs = {n: Call("Unsqueeze", (x,), {"axes": axes}) for n, x in inputs.items()}
        result = Call("Squeeze", (RESULT,), {"axes": axes})
        mask_rank = _rank(view, mask) if mask is not None else 0
        if mask is not None and match.rank == 3 and (mask_rank is None or mask_rank > 2):
            if mask_rank is None:
                mask = Call("Expand", (mask, _scores_shape(match)))
            mask = Call("Unsqueeze", (mask,), {"axes": axes})
        heads: int | None = 1
    else:
        q, v = inputs["Q"], inputs["V"]
        if mask is not None:
            mask = _merge_leading(Call("Expand", (mask, _scores_shape(match))))
        inputs = {n: _merge_leading(x) for n, x in inputs.items()}
        result = Call("Reshape", (RESULT, join(shape_slice(q, 0, -1), shape_slice(v, -1, None))))
        heads = None
    if mask is not None:
        inputs["attn_mask"] = mask
    outputs = {value: substitute(x, result) for value, x in match.outputs.items()}
    return replace(match, inputs=inputs, outputs=outputs, rank=4, num_heads=heads, kv_num_heads=heads)


def _heads_apart(view: View, match: AttentionMatch, heads: int) -> AttentionMatch:
    """Bring [B*H, S, D] to [B, H, S, D], as which the mask is given: often only a Reshape had merged the two."""
    inputs = dict(match.inputs)
    for name in ("Q", "K", "V"):
        x = inputs[name]
        before = _input_of(x, "Reshape")
        inputs[name] = before if before is not None and _are_apart(view, before, x, heads) else heads_apart(x, heads)
    merged = Call("Reshape", (RESULT, join(Const(np.array([-1], np.int64)), shape_slice(RESULT, -2, None))))
    outputs: dict[ir.Value, Operand] = {}
    for value, x in match.outputs.items():
        readers = value.uses()
        after = next(iter(readers)).node.outputs[0] if x is RESULT and len(readers) == 1 else None
        is_undone = after is not None and not value.is_graph_output() and _input_of(after, "Reshape") is value
        if after is not None and is_undone and _are_apart(view, after, value, heads):
            outputs[after] = RESULT
        else:
            outputs[value] = substitute(x, merged)
    return replace(
        match, inputs=inputs, outputs=outputs, rank=4, merged_heads=None, num_heads=heads, kv_num_heads=heads
    )


def _are_apart(view: View, apart: ir.Value, merged: Operand, heads: int) -> bool:
    """Return whether ``apart`` is [B, H, S, D] where ``merged``, of the same elements, is [B*H, S, D]."""
    four, three = view.dims.of(apart), view.dims.of(merged) if isinstance(merged, ir.Value) else None
    return four is not None and three is not None and len(four) == 4 and four[1] == heads and four[2:] == three[1:]


def _scores_shape(match: AttentionMatch) -> Operand:
    return join(shape_slice(match.inputs["Q"], 0, -1), shape_slice(match.inputs["K"], -2, -1))


def _merge_leading(x: Operand) -> Operand:
    """[..., H, S, D] -> [B, H, S, D]."""
    return Call("Reshape", (x, join(Const(np.array([-1], np.int64)), shape_slice(x, -3, None))))


def _rank(view: View, x: Operand) -> int | None:
    """Number of axes of a mask."""
    if isinstance(x, Const):
        return x.array.ndim
    if isinstance(x, ir.Value):
        return view.rank(x)
    if isinstance(x, Call) and x.op_type in ("Add", "Where", "Mul", "Div", "Max", "Neg", "Not"):
        ranks = [_rank(view, i) for i in x.inputs]
        return None if None in ranks else max(r for r in ranks if r is not None)
    return None


def _broadcast(view: View, match: AttentionMatch) -> AttentionMatch:
    """Expand operands that the products broadcast: a Q shared by the batch or by heads, K and V that differ in heads.

    Fewer key heads than query heads are the operator's own affair; sizes that are not known are left to the run.
    """
    rank = match.rank
    inputs, of_heads = dict(match.inputs), rank - 3 if rank > 3 else None
    sizes = {n: list(_leading(view, inputs[n]) or (None,) * rank) for n in ("Q", "K", "V")}
    for axis in range(rank - 2):
        for names in (("K", "V"), ("Q", "K")) if axis == of_heads else (("Q", "K", "V"),):
            known = {n: sizes[n][axis] for n in names}
            wide = next((n for n in names if known[n] not in (1, None)), None)
            for name in names:
                if wide is None or known[name] != 1 or (axis == of_heads and names == ("Q", "K") and name == "K"):
                    continue
                target: list[Operand] = [Const(np.array([1], np.int64))] * rank
                target[axis] = shape_slice(inputs[wide], axis, axis + 1)
                inputs[name] = Call("Expand", (inputs[name], Call("Concat", tuple(target), {"axis": 0})))
                sizes[name][axis] = known[wide]
    if rank != 4:
        return replace(match, inputs=inputs)
    heads, kv_heads = sizes["Q"][1], sizes["K"][1]
    return replace(
        match,
        inputs=inputs,
        num_heads=heads if isinstance(heads, int) else match.num_heads,
        kv_num_heads=kv_heads if isinstance(kv_heads, int) else match.kv_num_heads,
    )


def _leading(view: View, x: Operand) -> tuple[Token | None, ...] | None:
    """Sizes of an operand, as far as they are known; None where not even their number is."""
    if isinstance(x, ir.Value):
        return view.dims.of(x)
    if not isinstance(x, Call) or x.op_type not in ("Transpose", "Unsqueeze", "Mul", "Div", "Neg", "Cast"):
        return None
    sizes = _leading(view, x.inputs[0])
    if sizes is None or x.op_type not in ("Transpose", "Unsqueeze"):
        return sizes
    if x.op_type == "Transpose":
        return tuple(sizes[p] for p in x.attributes["perm"])
    rest = iter(sizes)
    return tuple(1 if a in x.attributes["axes"] else next(rest) for a in range(len(sizes) + len(x.attributes["axes"])))


def _cache_and_layout(view: View, match: AttentionMatch) -> AttentionMatch:
    """Absorb both; the layout alone where the graph uses the whole cache for something else as well."""
    cached = absorb_cache(view, match)
    if cached is not match:
        both = absorb_layout(view, cached)
        if may_keep_cache(both):
            return both
    return absorb_layout(view, match)


_STEPS: tuple[Callable[[View, AttentionMatch], AttentionMatch], ...] = (
    _transposes_and_scales,
    _grouped_queries,
    _zero_mask,
    _bool_mask,
    _broadcast,
    _four_axes,
    _cache_and_layout,
)
