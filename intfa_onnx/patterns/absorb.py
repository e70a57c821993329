"""Absorptions: what the fused node can do itself instead of nodes around it. Each is one function that may find nothing to do.

Every one maps a match to an equivalent match; none is needed for correctness.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from intfa_onnx.patterns.dims import Token
from intfa_onnx.patterns.match import RESULT, AttentionMatch, Call, Const, Operand, join, shape_slice, transpose
from intfa_onnx.patterns.view import View, int_attribute

_BHSD_FROM_BSHD = (0, 2, 1, 3)


def absorb(view: View, match: AttentionMatch) -> AttentionMatch:
    """Apply every absorption, then bring the operands to four axes (or three, with the heads packed)."""
    for step in _STEPS:
        match = step(view, match)
    return match


def _transposes_and_scales(view: View, match: AttentionMatch) -> AttentionMatch:
    """Compose Transposes (a key that is stored transposed) and take constant factors of Q and K into ``scale``."""
    inputs, scale, absorbed = dict(match.inputs), match.attributes["scale"], list(match.absorbed)
    for name in ("Q", "K", "V"):
        base, perm, factor = _peel(view, inputs[name], match.rank, may_scale=name != "V")
        scale *= factor
        inputs[name] = transpose(base, perm)
        if name == "K" and perm[-1] == match.rank - 1:
            absorbed.append("k_transpose")
    absorbed.append("scale")
    return replace(match, inputs=inputs, attributes={**match.attributes, "scale": scale}, absorbed=tuple(absorbed))


def _peel(view: View, x: Operand, rank: int, *, may_scale: bool) -> tuple[Operand, tuple[int, ...], float]:
    """Return (base, perm, factor) with ``x = transpose(base, perm) * factor``."""
    perm, factor = tuple(range(rank)), 1.0
    while True:
        node = x.producer() if isinstance(x, ir.Value) else None
        op = x.op_type if isinstance(x, Call) else node.op_type if node is not None and node.domain == "" else ""
        args = x.inputs if isinstance(x, Call) else node.inputs if node is not None else ()
        if op == "Transpose":
            inner = _perm(x, node, rank)
            perm, x = tuple(inner[p] for p in perm), _first(args)
        elif op == "Identity":
            x = _first(args)
        elif op in ("Mul", "Div") and may_scale and (split := _constant_factor(view, op, args)) is not None:
            x, factor = split[0], factor * split[1]
        elif op == "Reshape" and node is not None and (inner_value := _swap_through_3d(view, node, rank)) is not None:
            swap = (*range(rank - 2), rank - 1, rank - 2)
            perm, x = tuple(swap[p] for p in perm), inner_value
        else:
            return x, perm, factor


def _perm(x: Operand, node: ir.Node | None, rank: int) -> list[int]:
    if isinstance(x, Call):
        return list(x.attributes["perm"])
    assert node is not None
    return list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else list(range(rank))[::-1]


def _first(args: object) -> Operand:
    return args[0]  # type: ignore[index,no-any-return]


def _constant_factor(view: View, op: str, args: object) -> tuple[Operand, float] | None:
    a, b = args  # type: ignore[misc]
    for tensor, other in ((a, b), (b, a)) if op == "Mul" else ((a, b),):
        constant = view.scalar(other) if isinstance(other, ir.Value) else None
        # A constant of more axes than the tensor would add axes; [] and [1] are what exporters write.
        if constant and view.rank(other) in (0, 1):
            return tensor, constant if op == "Mul" else 1 / constant
    return None


def _swap_through_3d(view: View, node: ir.Node, rank: int) -> ir.Value | None:
    """Return x for ``Reshape(Transpose(Reshape(x, 3-D), (0, 2, 1)), shape of x with the last two axes swapped)``."""
    inner = node.inputs[0].producer() if node.inputs[0] is not None else None
    if inner is None or inner.op_type != "Transpose" or list(inner.attributes["perm"].as_ints()) != [0, 2, 1]:
        return None
    first = inner.inputs[0].producer() if inner.inputs[0] is not None else None
    source = first.inputs[0] if first is not None and first.op_type == "Reshape" else None
    if source is None:
        return None
    before, middle, after = view.dims.of(source), view.dims.of(_first(inner.inputs)), view.dims.of(node.outputs[0])  # type: ignore[arg-type]
    if before is None or after is None or middle is None or not len(before) == len(after) == rank or len(middle) != 3:
        return None
    is_swap = before[:-2] == after[:-2] and before[-1] == after[-2] and before[-2] == after[-1]
    return source if is_swap and middle[-2:] == before[-2:] else None


def _grouped_queries(view: View, match: AttentionMatch) -> AttentionMatch:
    """Undo ``Reshape(Expand(Unsqueeze(k, 2)))``, which repeats each key head for its group of query heads."""
    if match.rank != 4:
        return match
    bare = {name: _ungrouped(view, match.inputs[name]) for name in ("K", "V")}
    if bare["K"] is None or bare["V"] is None or bare["K"][1] != bare["V"][1]:
        return match
    inputs: dict[str, Operand] = {**match.inputs, "K": bare["K"][0], "V": bare["V"][0]}
    return replace(match, inputs=inputs, kv_num_heads=bare["K"][1], absorbed=(*match.absorbed, "gqa"))


def _ungrouped(view: View, x: Operand) -> tuple[ir.Value, int] | None:
    """Return the value with the original heads [B, Hkv, S, D], and Hkv."""
    reshape = x.producer() if isinstance(x, ir.Value) else None
    expand = _producer(reshape, "Reshape")
    unsqueeze = _producer(expand, "Expand")
    source = unsqueeze.inputs[0] if unsqueeze is not None and unsqueeze.op_type == "Unsqueeze" else None
    if reshape is None or expand is None or unsqueeze is None or source is None:
        return None
    before, wide, after = view.dims.of(source), view.dims.of(expand.outputs[0]), view.dims.of(reshape.outputs[0])
    if before is None or wide is None or after is None or (len(before), len(wide), len(after)) != (4, 5, 4):
        return None
    heads, group, total = before[1], wide[2], after[1]
    known = isinstance(heads, int) and isinstance(group, int) and isinstance(total, int)
    if view.axes(unsqueeze) not in ([2], [-3]) or not known or wide[1] != heads or heads * group != total:
        return None
    return (source, heads) if before[3] == after[3] and isinstance(heads, int) else None


def _producer(node: ir.Node | None, op_type: str) -> ir.Node | None:
    """Return the producer of the first input of ``node`` if ``node`` is an ``op_type``."""
    if node is None or node.op_type != op_type or not node.inputs or node.inputs[0] is None:
        return None
    return node.inputs[0].producer()


def _zero_mask(view: View, match: AttentionMatch) -> AttentionMatch:
    """Leave out a mask of zeros."""
    mask = match.inputs.get("attn_mask")
    if not isinstance(mask, ir.Value) or not _is_zero(view, mask):
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
    mask = match.inputs.get("attn_mask")
    node = mask.producer() if isinstance(mask, ir.Value) else None
    op = mask.op_type if isinstance(mask, Call) else node.op_type if node is not None else ""
    if op != "Where":
        return match
    args: tuple[Operand, ...] = tuple(mask.inputs) if isinstance(mask, Call) else tuple(node.inputs)  # type: ignore
    condition, kept, dropped = args
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
        heads = (1, 1)
    else:
        q, v = inputs["Q"], inputs["V"]
        if mask is not None:
            mask = _merge_leading(Call("Expand", (mask, _scores_shape(match))))
        inputs = {n: _merge_leading(x) for n, x in inputs.items()}
        result = Call("Reshape", (RESULT, join(shape_slice(q, 0, -1), shape_slice(v, -1, None))))
        heads = (None, None)
    if mask is not None:
        inputs["attn_mask"] = mask
    outputs = {value: _substitute(x, result) for value, x in match.outputs.items()}
    return replace(match, inputs=inputs, outputs=outputs, rank=4, num_heads=heads[0], kv_num_heads=heads[1])


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
    if match.rank != 4:
        return match
    inputs = dict(match.inputs)
    sizes = {n: _leading(view, inputs[n]) for n in ("Q", "K", "V")}
    for axis, names in ((0, ("Q", "K", "V")), (1, ("K", "V")), (1, ("Q", "K"))):
        known = {n: sizes[n][axis] for n in names}
        wide = next((n for n in names if known[n] not in (1, None)), None)
        for name in names:
            if wide is None or known[name] != 1 or (axis == 1 and names == ("Q", "K") and name == "K"):
                continue
            target = [Const(np.array([1], np.int64))] * 4
            shape = Call(
                "Concat", (*target[:axis], shape_slice(inputs[wide], axis, axis + 1), *target[axis + 1 :]), {"axis": 0}
            )
            inputs[name] = Call("Expand", (inputs[name], shape))
            sizes[name] = tuple(known[wide] if a == axis else s for a, s in enumerate(sizes[name]))
    heads, kv_heads = sizes["Q"][1], sizes["K"][1]
    return replace(
        match,
        inputs=inputs,
        num_heads=heads if isinstance(heads, int) else match.num_heads,
        kv_num_heads=kv_heads if isinstance(kv_heads, int) else match.kv_num_heads,
    )


def _leading(view: View, x: Operand) -> tuple[Token | None, ...]:
    """Batch and heads of an operand [B, H, S, D], as far as they are known."""
    if isinstance(x, ir.Value):
        return (view.dims.of(x) or (None, None))[:2]
    if isinstance(x, Call) and x.op_type == "Transpose" and isinstance(x.inputs[0], ir.Value):
        sizes = view.dims.of(x.inputs[0])
        return tuple(sizes[p] for p in x.attributes["perm"][:2]) if sizes is not None else (None, None)
    if isinstance(x, Call) and x.op_type in ("Mul", "Div"):
        return _leading(view, x.inputs[0])
    return None, None


def _substitute(x: Operand, result: Operand) -> Operand:
    """Return ``x`` with ``RESULT`` replaced."""
    if x is RESULT:
        return result
    return Call(x.op_type, tuple(_substitute(i, result) for i in x.inputs), x.attributes) if isinstance(x, Call) else x


def _packed_heads(view: View, match: AttentionMatch) -> AttentionMatch:
    """Read Q, K, V as [B, S, H*D] and write Y as [B, S, H*Dv] where the graph transposes them only for the products."""
    bases = [_bshd(view, match.inputs[name]) for name in ("Q", "K", "V")]
    target = _only_reader(view, next(iter(match.outputs)), "Transpose")
    is_back = target is not None and _perm(target.outputs[0], target, 4) == [0, 2, 1, 3]
    if (
        target is None
        or not is_back
        or any(b is None for b in bases)
        or match.outputs[next(iter(match.outputs))] is not RESULT
    ):
        return match
    (q, heads), (k, kv_heads), (v, v_heads) = (b for b in bases if b is not None)
    if kv_heads != v_heads or match.head_dim_v is None:
        return match
    pv_out = next(iter(match.outputs))
    bshd = Call("Reshape", (RESULT, Const(np.array([0, 0, heads, match.head_dim_v], np.int64))))
    outputs: dict[ir.Value, Operand] = {target.outputs[0]: bshd}
    for node, _ in view.metadata_readers(pv_out):
        if node.op_type != "Shape":
            return match
        perm = [0, 2, 1, 3][int_attribute(node, "start", 0) : int_attribute(node, "end", 4)]
        outputs[node.outputs[0]] = Call(
            "Gather", (Call("Shape", (bshd,)), Const(np.array(perm, np.int64))), {"axis": 0}
        )
    outputs.update({v: x for v, x in match.outputs.items() if v is not pv_out})
    return replace(
        match,
        inputs={**match.inputs, "Q": q, "K": k, "V": v},
        attributes={**match.attributes, "q_num_heads": heads, "kv_num_heads": kv_heads},
        outputs=outputs,
        rank=3,
        absorbed=(*match.absorbed, "bshd"),
    )


def _bshd(view: View, x: Operand) -> tuple[Operand, int] | None:
    """Return [B, S, H*D] and H for a Transpose of [B, S, H, D]."""
    node = x.producer() if isinstance(x, ir.Value) else None
    op = x.op_type if isinstance(x, Call) else node.op_type if node is not None else ""
    if op != "Transpose" or tuple(_perm(x, node, 4)) != _BHSD_FROM_BSHD:
        return None
    base = _first(x.inputs if isinstance(x, Call) else node.inputs)  # type: ignore[union-attr]
    heads = view.dim(base, 2) if isinstance(base, ir.Value) else None
    if heads is None or not isinstance(base, ir.Value):
        return None
    reshape = base.producer()
    packed = reshape.inputs[0] if reshape is not None and reshape.op_type == "Reshape" else None
    before, after = (view.dims.of(packed) if packed is not None else None), view.dims.of(base)
    if packed is not None and before is not None and after is not None and len(before) == 3 and before[:2] == after[:2]:
        return packed, heads
    return Call("Reshape", (base, Const(np.array([0, 0, -1], np.int64)))), heads


def _only_reader(view: View, value: ir.Value, op_type: str) -> ir.Node | None:
    readers = view.readers(value)
    if len(readers) != 1 or value.is_graph_output() or readers[0][0].op_type != op_type:
        return None
    return readers[0][0]


_STEPS: tuple[Callable[[View, AttentionMatch], AttentionMatch], ...] = (
    _transposes_and_scales,
    _grouped_queries,
    _zero_mask,
    _bool_mask,
    _broadcast,
    _four_axes,
    _packed_heads,
)
