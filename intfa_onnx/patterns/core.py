"""The core walk: from a softmax down to P V and up to Q K^T, and what the nodes in between mean.

Everything that is not understood stays outside, on Q, K, V or the mask; what lies between the two products has to be
understood completely or the match ends with a reason. ``absorb`` then makes the result cheaper where it can.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from intfa_onnx.patterns.match import (
    RESULT,
    AttentionMatch,
    Call,
    Const,
    NoMatch,
    Operand,
    join,
    node_name,
    shape_slice,
    slice_of,
    transpose,
)
from intfa_onnx.patterns.products import Product, pv_product, qk_product
from intfa_onnx.patterns.view import View, int_attribute

# A score that the graph overwrites with at most this is masked out: exp(-1e4 - max) is 0 in every float type.
_MASKED = -1e4
_MAX_STEPS = 16
_SAME_VALUE = ("Cast", "CastLike", "Identity")
_SAME_ELEMENTS = ("Reshape", "Squeeze", "Unsqueeze")


@dataclass
class _Scores:
    """The meaning of a value between Q K^T and softmax: ``cap(Q K^T * row_scale * scale) + mask``."""

    scale: float = 1.0
    row_scale: list[tuple[str, ir.Value]] = field(
        default_factory=list
    )  # run-time factors, broadcast over keys: go to Q
    mask: Operand | None = None
    softcap: float = 0.0
    tanh: bool = False  # between a Tanh and the Mul that follows it
    shape: Operand | None = None  # shape at this point where it is not the one of Q K^T any more
    may_exclude: bool = False  # some key may get -inf


def match_core(
    view: View, anchor: ir.Node, family: str, scores: ir.Value, probs: ir.Value, readers: set[ir.Node]
) -> AttentionMatch:
    """Match ``P = softmax(scores)`` over the last axis as part of an attention.

    Args:
        view: facts about the model.
        anchor: node that names the attention.
        family: name of the calling family.
        scores: input of the softmax.
        probs: output of the softmax.
        readers: the nodes of the softmax that read the scores.

    Raises:
        NoMatch: with the reason.
    """
    check_readers(view, scores, readers)
    down = _walk_down(view, probs)
    qk_node, path_up = _walk_up(view, scores)
    _check_row_guards(down.row_guards, qk_node, path_up)
    if view.is_constant(down.node.inputs[1 - down.side]):
        raise NoMatch("V is a constant: a gate, not attention")
    qk = qk_product(view, qk_node)
    pv = pv_product(view, down.node, down.side)
    dtype = _float_dtype(view, qk.first)
    meaning = _read_scores(view, qk_node, path_up, _scores_shape(qk))
    notes: tuple[str, ...] = ()
    if meaning.may_exclude and not down.guarded:
        notes = ("a row with every key masked gives 0 where the original gives NaN",)
    q: Operand = transpose(qk.first, qk.first_perm)
    for op, value in meaning.row_scale:
        q = Call(op, (q, value))
    v, from_pv_type = _value_operand(view, pv.second, dtype)
    v = transpose(v, pv.second_perm)
    result: Operand = RESULT
    if down.factor != 1.0:
        result = Call("Mul", (result, Const(np.array(down.factor, dtype.numpy()))))
    if view.dims.of(pv.first) != view.dims.of(qk_node.outputs[0]) and (down.reshaped or meaning.shape is not None):
        _check_same_rows(view, qk_node.outputs[0], pv.first)
        # The products work on different leading axes: V comes to those of Q, and the result goes back to those of V.
        original = v
        v = Call("Reshape", (v, join(shape_slice(q, 0, -2), shape_slice(v, -2, None))))
        tail = shape_slice(result, -2, None)
        result = Call("Reshape", (result, join(shape_slice(original, 0, -2), tail)))
    if from_pv_type is not None:
        result = Call("Cast", (result,), {"to": int(from_pv_type)})
    inputs: dict[str, Operand] = {"Q": q, "K": transpose(qk.second, qk.second_perm), "V": v}
    if meaning.mask is not None:
        inputs["attn_mask"] = meaning.mask
    outputs: dict[ir.Value, Operand] = {down.node.outputs[0]: transpose(result, pv.result_perm)}
    outputs.update(_replace_metadata_readers(view, qk, [*path_up_values(qk_node, path_up), *down.values]))
    return AttentionMatch(
        anchor=anchor,
        place=down.node,
        family=family,
        inputs=inputs,
        attributes={"scale": meaning.scale, "softcap": meaning.softcap},
        outputs=outputs,
        dtype=dtype,
        rank=qk.rank,
        around=True,
        head_dim=view.dim(qk.first, qk.first_perm[-1]) or view.dim(qk.second, qk.second_perm[-1]),
        head_dim_v=view.dim(pv.second, pv.second_perm[-1]),
        num_heads=view.dim(qk.first, qk.first_perm[1]) if qk.rank == 4 else None,
        kv_num_heads=view.dim(qk.second, qk.second_perm[1]) if qk.rank == 4 else None,
        absorbed=(("mask",) if meaning.mask is not None else ()) + (("softcap",) if meaning.softcap else ()),
        notes=notes,
    )


@dataclass
class _Down:
    """The way from the softmax to the product with V."""

    node: ir.Node
    side: int  # by which input P enters the product
    values: list[ir.Value]
    guarded: bool = False  # NaN is replaced by 0
    factor: float = 1.0
    reshaped: bool = False
    row_guards: tuple[ir.Value, ...] = ()  # rows where all of this is -inf are replaced by 0


def _walk_down(view: View, probs: ir.Value) -> _Down:
    value, guarded, reshaped, factor, passed = probs, False, False, 1.0, []
    row_guards: tuple[ir.Value, ...] = ()
    for _ in range(_MAX_STEPS):
        passed.append(value)
        if value.is_graph_output():
            raise NoMatch("the probabilities are an output of the graph")
        readers = view.readers(value)
        if len(readers) == 2 and {n.op_type for n, _ in readers} == {"IsNaN", "Where"}:
            value, guarded = _nan_guard(view, value, readers), True
            continue
        if len(readers) != 1:
            raise NoMatch(f"the probabilities have {len(readers)} consumers ({_op_types(readers)})")
        node, index = readers[0]
        if node.op_type in ("MatMul", "Einsum"):
            return _Down(node, index, passed, guarded or bool(row_guards), factor, reshaped, row_guards)
        if node.op_type in _SAME_VALUE or (node.op_type == "Dropout" and _is_idle_dropout(view, node)):
            pass
        elif node.op_type in _SAME_ELEMENTS:
            reshaped = True
        elif (masked := _row_guard(view, node, index)) is not None:
            row_guards = (*row_guards, masked)
        elif (
            node.op_type in ("Mul", "Div")
            and (constant := view.scalar(node.inputs[1 - index]))
            and not (node.op_type == "Div" and index == 1)
        ):
            factor *= constant if node.op_type == "Mul" else 1 / constant
        else:
            raise NoMatch(
                f"the probabilities go through {node.op_type} ('{node_name(node)}') before the product with V"
            )
        value = node.outputs[0]
    raise NoMatch("no product with V below the softmax")


def _check_same_rows(view: View, scores: ir.Value, probs: ir.Value) -> None:
    """Check that P, reshaped, still has one row per query and one column per key."""
    before, after = view.dims.of(scores), view.dims.of(probs)
    if before is None or after is None or before[-2:] != after[-2:]:
        raise NoMatch("the probabilities are reshaped, and their last two axes are not provably those of Q K^T")


def _value_operand(view: View, value: ir.Value, dtype: ir.DataType) -> tuple[ir.Value, ir.DataType | None]:
    """Return V in the type of Q, and the type to cast the result to where that differs."""
    found = view.dtype(value)
    if found == dtype:
        return value, None
    node = value.producer()
    if (
        node is not None
        and node.op_type == "Cast"
        and node.inputs[0] is not None
        and view.dtype(node.inputs[0]) == dtype
    ):
        return node.inputs[0], found
    raise NoMatch(f"V has type {found.name if found else 'unknown'} where Q has {dtype.name}")


def _nan_guard(view: View, probs: ir.Value, readers: list[tuple[ir.Node, int]]) -> ir.Value:
    """Return the output of ``Where(IsNaN(P), 0, P)``."""
    where, index = next((n, i) for n, i in readers if n.op_type == "Where")
    condition = where.inputs[0].producer() if where.inputs[0] is not None else None
    is_guard = condition is not None and condition.op_type == "IsNaN" and condition.inputs[0] is probs
    if index != 2 or not is_guard or view.scalar(where.inputs[1]) != 0:
        raise NoMatch(f"the probabilities are rewritten by '{node_name(where)}', which is not a NaN guard")
    return where.outputs[0]


def _row_guard(view: View, node: ir.Node, index: int) -> ir.Value | None:
    """Return x for ``Where(ReduceMax(x) == -inf, 0, P)``, which is how ONNX's own function body guards."""
    if node.op_type != "Where" or index != 2 or view.scalar(node.inputs[1]) != 0 or node.inputs[0] is None:
        return None
    equal = node.inputs[0].producer()
    if equal is None or equal.op_type != "Equal" or view.scalar(equal.inputs[1]) != -np.inf or equal.inputs[0] is None:
        return None
    maximum = equal.inputs[0].producer()
    if maximum is None or maximum.op_type != "ReduceMax" or maximum.inputs[0] is None:
        return None
    axes, rank = view.axes(maximum), view.rank(maximum.inputs[0])
    return maximum.inputs[0] if axes is not None and axes in ([-1], [rank - 1] if rank else [-1]) else None


def _check_row_guards(guards: tuple[ir.Value, ...], qk_node: ir.Node, path: _Path) -> None:
    """Check that a guard looks at the mask or the masked scores: then it replaces exactly the rows without a key."""
    seen = {qk_node.outputs[0], *(v for n, _ in path for v in (*n.inputs, *n.outputs))}
    if any(g not in seen for g in guards):
        raise NoMatch("the probabilities are overwritten where something other than their mask says so")


def _is_idle_dropout(view: View, node: ir.Node) -> bool:
    training = node.inputs[2] if len(node.inputs) > 2 else None
    mask_used = len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output())
    return not mask_used and (training is None or view.scalar(training) == 0)


# A step of the way up from softmax: the node, and the input by which the scores enter it.
_Path = list[tuple[ir.Node, int]]


def _walk_up(view: View, scores: ir.Value) -> tuple[ir.Node, _Path]:
    """Find Q K^T above ``scores``: its node and the steps from it down to the softmax."""
    blocked: list[str] = []
    found = _find_product(view, scores, 0, blocked)
    if found is None:
        raise NoMatch(blocked[0] if blocked else "no product Q K^T above the softmax")
    node, path = found
    return node, path[::-1]


def _find_product(view: View, value: ir.Value, depth: int, blocked: list[str]) -> tuple[ir.Node, _Path] | None:
    node = value.producer()
    if node is None or depth > _MAX_STEPS or node.domain not in ("", "ai.onnx"):
        return None
    # A product with constant weights is a projection. Constant queries, though, are what latents and prompts are.
    is_product = node.op_type in ("MatMul", "Einsum") and not any(view.is_constant(i) for i in node.inputs[-1:])
    if not is_product and node.op_type not in _SCORE_INPUTS:
        return None
    best: tuple[ir.Node, _Path] | None = (node, []) if is_product else None
    for index in () if is_product else _SCORE_INPUTS[node.op_type]:
        entering = node.inputs[index] if index < len(node.inputs) else None
        if entering is None or (found := _find_product(view, entering, depth + 1, blocked)) is None:
            continue
        candidate = (found[0], [(node, index), *found[1]])
        if best is None or _cost(candidate[1]) < _cost(best[1]):
            best = candidate
    if best is None:
        return None
    try:
        if depth > 0:
            check_readers(view, value, {n for n, _ in view.readers(value)[:1]})
    except NoMatch as reason:
        blocked.append(str(reason))
        return None
    return best


def check_readers(view: View, scores: ir.Value, expected: set[ir.Node]) -> None:
    """Check that only the expected nodes need the scores.

    Raises:
        NoMatch: the scores are an output of the graph, or other nodes read them.
    """
    if scores.is_graph_output():
        raise NoMatch("the scores are an output of the graph")
    others = [(n, i) for n, i in view.readers(scores) if n not in expected]
    if others:
        raise NoMatch(f"the scores have other consumers ({_op_types(others)})")


# Which inputs the scores may come through, in order of preference.
_SCORE_INPUTS = {
    **dict.fromkeys((*_SAME_VALUE, *_SAME_ELEMENTS, "Dropout", "Tanh", "Transpose", "Clip"), (0,)),
    **dict.fromkeys(("Mul", "Add", "Max", "Min"), (0, 1)),
    **dict.fromkeys(("Div", "Sub"), (0,)),
    "Where": (1, 2),
}


def _cost(path: _Path) -> int:
    """Prefer the plain way: of two products that are added, the one that is reshaped is a position bias."""
    return sum(5 if n.op_type in (*_SAME_ELEMENTS, "Transpose", "Tanh") else 1 for n, _ in path)


def _read_scores(view: View, qk_node: ir.Node, path: _Path, core_shape: Operand) -> _Scores:
    """Read the steps from Q K^T to the softmax, first to last."""
    meaning = _Scores()
    for node, index in path:
        op = node.op_type
        other = node.inputs[1 - index] if op in ("Mul", "Div", "Add", "Sub", "Max", "Min") else None
        if op in _SAME_VALUE or (op == "Dropout" and _is_idle_dropout(view, node)):
            continue
        if op in ("Mul", "Div") and other is not None:
            _read_factor(view, meaning, node, other)
        elif op in ("Add", "Sub") and other is not None:
            _read_bias(view, meaning, node, other)
        elif op == "Where":
            _read_where(view, meaning, node, index)
        elif op == "Tanh":
            if meaning.mask is not None or meaning.tanh or meaning.softcap:
                raise NoMatch("Tanh after the mask")
            meaning.tanh = True
            meaning.softcap = 1.0
        elif op in ("Max", "Clip"):
            _read_floor(view, meaning, node, index)
        elif op in _SAME_ELEMENTS:
            _read_reshape(view, meaning, node, core_shape)
        else:
            raise NoMatch(f"{op} ('{node_name(node)}') between Q K^T and softmax is not understood")
    if meaning.softcap:
        # cap * tanh(s * f) = cap * tanh((s * f * cap) / cap)
        meaning.scale *= meaning.softcap
    if meaning.mask is not None and meaning.shape is not None:
        meaning.mask = Call("Reshape", (Call("Expand", (meaning.mask, meaning.shape)), core_shape))
    return meaning


def _read_reshape(view: View, meaning: _Scores, node: ir.Node, core_shape: Operand) -> None:
    """Follow the shape of the scores, so that a mask given for the new shape can be brought back to that of Q K^T."""
    before = core_shape if meaning.shape is None else meaning.shape
    others = tuple(_required(i) for i in node.inputs[1:])
    attributes = {n: a.value for n, a in node.attributes.items()}
    if meaning.mask is not None:
        meaning.mask = Call(node.op_type, (Call("Expand", (meaning.mask, before)), *others), attributes)
    sizes = view.dims.of(node.outputs[0])
    if sizes is not None and all(isinstance(s, int) for s in sizes):
        meaning.shape = Const(np.array(sizes, np.int64))
    elif node.op_type == "Reshape" and (given := view.dims.content(others[0])) and not {0, -1, None} & set(given):
        meaning.shape = others[0]
    else:
        # The target holds 0 or -1: let the operator itself say what comes out, on one byte per score.
        blank = Call("Expand", (Const(np.array(False)), before))
        meaning.shape = Call("Shape", (Call(node.op_type, (blank, *others), attributes),))


def _read_factor(view: View, meaning: _Scores, node: ir.Node, other: ir.Value) -> None:
    constant = view.scalar(other)
    if constant is not None and constant != 0:
        factor = constant if node.op_type == "Mul" else 1 / constant
        if meaning.tanh:
            meaning.softcap *= factor
        else:
            meaning.scale *= factor
        if meaning.mask is not None:
            meaning.mask = Call(node.op_type, (meaning.mask, other))
        return
    shape = view.shape(other)
    if shape is None or (shape and shape[-1] != 1):
        raise NoMatch(f"'{node_name(node)}' scales the scores by a tensor that may differ from key to key")
    if meaning.mask is not None or meaning.tanh:
        raise NoMatch(f"'{node_name(node)}' scales the scores by a run-time tensor after the mask or softcap")
    meaning.row_scale.append((node.op_type, other))


def _read_bias(view: View, meaning: _Scores, node: ir.Node, other: ir.Value) -> None:
    bias: Operand = Call("Neg", (other,)) if node.op_type == "Sub" else other
    meaning.tanh = False
    meaning.mask = bias if meaning.mask is None else Call("Add", (meaning.mask, bias))
    # Whether a run-time mask holds -inf cannot be known; finfo.min, the usual case of an Add, is finite.
    meaning.may_exclude = meaning.may_exclude or _makes_minus_inf(view, other)


def _read_where(view: View, meaning: _Scores, node: ir.Node, index: int) -> None:
    condition, filler = node.inputs[0], node.inputs[3 - index]
    constant = view.constant(filler)
    if condition is None or filler is None or constant is None or constant.size != 1 or not constant.item() <= _MASKED:
        raise NoMatch(f"'{node_name(node)}' overwrites scores with something other than a large negative constant")
    dtype = _float_dtype(view, node.outputs[0])
    limits = np.finfo(np.float32) if dtype == ir.DataType.BFLOAT16 else np.finfo(dtype.numpy())
    excluded = np.isneginf(constant.item())
    # A finite filler is the same for all keys of a fully masked row, which makes it uniform; finfo.min keeps that.
    masked = Const(np.array(-np.inf if excluded else limits.min).astype(dtype.numpy()))
    unmasked: Operand = Const(np.array(0, dtype.numpy())) if meaning.mask is None else meaning.mask
    branches = (unmasked, masked) if index == 1 else (masked, unmasked)
    meaning.mask = Call("Where", (condition, *branches))
    meaning.may_exclude = meaning.may_exclude or bool(excluded)
    meaning.tanh = False


def _read_floor(view: View, meaning: _Scores, node: ir.Node, index: int) -> None:
    """``Max(scores, finfo.min)`` and ``Clip`` with that bound only turn -inf into finfo.min."""
    if node.op_type == "Clip" and len(node.inputs) > 2 and node.inputs[2] is not None:
        raise NoMatch(f"'{node_name(node)}' bounds the scores from above")
    others = [i for k, i in enumerate(node.inputs) if k != index and i is not None]
    floor = view.scalar(others[0]) if len(others) == 1 else None
    if floor is None or floor > _MASKED or meaning.tanh:
        raise NoMatch(f"'{node_name(node)}' bounds the scores from below by more than a mask does")
    if meaning.mask is not None:
        meaning.mask = Call("Max", (meaning.mask, others[0]))
        meaning.may_exclude = False


def _makes_minus_inf(view: View, value: ir.Value) -> bool:
    """Whether a mask is visibly made with -inf: ``Where(c, 0, -inf)`` or a small constant."""
    node = value.producer()
    operands = [value] if node is None or node.op_type != "Where" else list(node.inputs[1:])
    constants = [view.constant(o) for o in operands]
    return any(c is not None and np.issubdtype(c.dtype, np.floating) and bool(np.isneginf(c).any()) for c in constants)


def path_up_values(qk_node: ir.Node, path: _Path) -> list[ir.Value]:
    """Return the values from Q K^T to the softmax's input."""
    return [qk_node.outputs[0], *(n.outputs[0] for n, _ in path)]


def _replace_metadata_readers(view: View, qk: Product, values: list[ir.Value]) -> dict[ir.Value, Operand]:
    """Give nodes that read only the shape or type of the scores something else to read, so that the scores can go."""
    replaced: dict[ir.Value, Operand] = {}
    for value in values:
        for node, _ in view.metadata_readers(value):
            if node.op_type == "CastLike":
                replaced[node.outputs[0]] = Call(
                    "Cast", (_required(node.inputs[0]),), {"to": int(_float_dtype(view, value))}
                )
                continue
            shape = _scores_shape(qk)
            if node.op_type == "Size":
                shape = Call("ReduceProd", (shape,), {"keepdims": 0})
            elif "start" in node.attributes or "end" in node.attributes:
                start, end = int_attribute(node, "start", 0), int_attribute(node, "end", qk.rank)
                shape = slice_of(shape, start, end)
            replaced[node.outputs[0]] = shape
    return replaced


def _scores_shape(qk: Product) -> Operand:
    """[..., Sq, Skv] from the shapes of Q and K."""
    q, k = transpose(qk.first, qk.first_perm), transpose(qk.second, qk.second_perm)
    return join(shape_slice(q, 0, -1), shape_slice(k, -2, -1))


def _required(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise NoMatch("an input is missing")
    return value


def _float_dtype(view: View, value: ir.Value) -> ir.DataType:
    dtype = view.dtype(value)
    if dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        found = dtype.name if dtype is not None else "unknown"
        raise NoMatch(f"element type {found} is unsupported (supported: FLOAT, FLOAT16, BFLOAT16)")
    return dtype


def _op_types(readers: list[tuple[ir.Node, int]]) -> str:
    return ", ".join(sorted(n.op_type for n, _ in readers))
