"""The core of an attention around a softmax, stated in the terms of the standard ``Attention``.

Everything that is not understood stays outside, on Q, K, V or the mask; what lies between the two products has to be
understood completely, or the match ends with a reason. ``absorb`` then makes the result cheaper where it can.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from intfa_onnx.patterns.dims import Dims, Token
from intfa_onnx.patterns.match import (
    RESULT,
    AttentionMatch,
    Call,
    Const,
    NoMatch,
    Operand,
    float_dtype,
    join,
    node_name,
    required,
    shape_slice,
    slice_of,
    transpose,
)
from intfa_onnx.patterns.products import Product, is_quantized, joined, operands, pv_product, qk_product
from intfa_onnx.patterns.rows import check_same_rows, follow
from intfa_onnx.patterns.scores import Scores, read_scores
from intfa_onnx.patterns.sinks import apply_sink, drops_sink, part_from_sink
from intfa_onnx.patterns.view import View, int_attribute
from intfa_onnx.patterns.walk import (
    SAME_ELEMENTS,
    Division,
    Down,
    Path,
    check_readers,
    split_row_guards,
    transposed,
    values_on_path,
    walk_down,
    walk_up,
)


def match_core(
    view: View,
    anchor: ir.Node,
    family: str,
    scores: ir.Value,
    probs: ir.Value,
    readers: set[ir.Node],
    axis: int = -1,
    division: Division | None = None,
) -> AttentionMatch:
    """Match ``P = softmax(scores)`` as part of an attention.

    Args:
        view: facts about the model.
        anchor: node that names the attention.
        family: name of the calling family.
        scores: input of the softmax.
        probs: output of the softmax.
        readers: the nodes of the softmax that read the scores.
        axis: that the softmax goes over; -1 for the last.
        division: what divides the product with V by the sum of each row, where ``probs`` are not divided.

    Raises:
        NoMatch: with the reason.
    """
    sink = None
    if axis == -1:
        scores, readers, sink = part_from_sink(view, scores, readers)
    down = walk_down(view, probs, None if sink is None else partial(drops_sink, view, sink), division)
    check_readers(view, scores, readers | down.guards)
    qk_node, path_up = walk_up(view, scores)
    guards_rows = split_row_guards(down, qk_node, path_up)
    if any(view.is_constant(x) for n, side in down.products for x in (operands(n) or ())[1 - side : 2 - side]):
        raise NoMatch("V is a constant: a gate, not attention")
    qk = qk_product(view, qk_node, _key_axis(view, scores, path_up, axis))
    if view.is_constant(qk.second):
        raise NoMatch("K is a constant: a projection, not attention")
    meaning = read_scores(view, qk, qk_node, path_up, _scores_shape(qk), down.zeroed)
    axes = meaning.axes
    for node in down.transposes:
        axes = transposed(axes, node)
    values = [*values_on_path(qk_node, path_up), *down.values]
    reshaped = down.reshaped or meaning.reshaped
    in_order = meaning.in_order() and not down.transposes
    _check_unusual(view, qk, meaning, down, values, unusual=sink is not None or len(down.products) > 1)
    pv = joined(view, [pv_product(view, n, side, None if reshaped else axes) for n, side in down.products])
    if division is not None and not (in_order and pv.result_perm == tuple(range(pv.rank))):
        raise NoMatch("the product with V is divided by sums whose axes are in another order")
    dtype = float_dtype(view.dtype(qk.first))
    q = qk.queries()
    for op, value in meaning.row_scale:
        q = Call(op, (q, value))
    v_values, from_pv_types = zip(*(_value_operand(view, x, dtype) for x in (pv.second, *pv.more)), strict=True)
    v, from_pv_type = pv.keys(v_values), from_pv_types[0]
    result: Operand = RESULT if sink is None else apply_sink(view, sink, qk, pv, RESULT, dtype)
    if (factor := down.factor * pv.factor) != 1.0:
        result = Call("Mul", (result, Const(np.array(factor, dtype.numpy()))))
    for op, of_rows in down.factors:
        result = _of_rows(view, op, of_rows, result, dtype)
    if reshaped:
        check_same_rows(view, values_on_path(qk_node, path_up), down.values)
    if reshaped and view.dims.of(pv.first) != view.dims.of(qk_node.outputs[0]):
        # The products work on different leading axes: V comes to those of Q, and the result goes back to those of V.
        v, result = _with_leading_axes(v, q), _with_leading_axes(result, v)
    if from_pv_type is not None:
        result = Call("Cast", (result,), {"to": int(from_pv_type)})
    num_heads, kv_num_heads = qk.heads(view)
    inputs: dict[str, Operand] = {"Q": q, "K": qk.keys(), "V": v}
    if meaning.mask is not None:
        inputs["attn_mask"] = meaning.mask
    outputs: dict[ir.Value, Operand] = {down.node.outputs[0]: transpose(result, pv.result_perm)}
    outputs.update(_replace_metadata_readers(view, qk, values, in_order=in_order, reshaped=reshaped))
    return AttentionMatch(
        anchor=anchor,
        place=down.node,
        family=family,
        inputs=inputs,
        attributes={"scale": meaning.scale, "softcap": meaning.softcap},
        outputs=outputs,
        dtype=dtype,
        rank=qk.rank,
        merged_heads=meaning.merged_heads,
        around=True,
        head_dim=view.dim(qk.first, qk.first_perm[-1]) or view.dim(qk.second, qk.second_perm[-1]),
        head_dim_v=view.dim(pv.second, pv.second_perm[-1]),
        num_heads=num_heads,
        kv_num_heads=kv_num_heads,
        absorbed=(("mask",) if meaning.mask is not None else ()) + (("softcap",) if meaning.softcap else ()),
        notes=_notes(qk_node, meaning, down, guarded=down.guarded or guards_rows or sink is not None),
    )


def _notes(qk_node: ir.Node, meaning: Scores, down: Down, *, guarded: bool) -> tuple[str, ...]:
    """Return what differs from the original on purpose; ``guarded``: a row without a key is no NaN there."""
    notes = []
    if meaning.may_exclude and not guarded:
        notes.append("a row with every key masked gives 0 where the original gives NaN")
    quantized = [("operands", n) for n in (qk_node, *(n for n, _ in down.products)) if is_quantized(n)]
    quantized += [*(("scores", n) for n in meaning.quantized), *(("probabilities", n) for n in down.quantized)]
    for what, node in quantized:
        notes.append(f"the operator's own quantization takes the place of that of the {what} ('{node_name(node)}')")
    return tuple(notes)


def _with_leading_axes(x: Operand, of: Operand) -> Operand:
    """Return ``x`` reshaped to the leading axes of another tensor; the last two stay."""
    return Call("Reshape", (x, join(shape_slice(of, 0, -2), shape_slice(x, -2, None))))


def _key_axis(view: View, scores: ir.Value, path: Path, axis: int) -> int:
    """Return the axis of the product that the softmax goes over; -1 for the last."""
    transposes = [n for n, _ in path if n.op_type == "Transpose"]
    if not transposes and axis == -1:
        return -1
    rank = view.rank(scores)
    if rank is None:
        raise NoMatch("the scores are transposed, and their rank is unknown")
    if any(n.op_type in SAME_ELEMENTS for n, _ in path):
        raise NoMatch("the scores are transposed and reshaped")
    axes = tuple(range(rank))
    for node in transposes:
        axes = transposed(axes, node)
    return axes[axis]


def _check_unusual(
    view: View, qk: Product, meaning: Scores, down: Down, values: list[ir.Value], *, unusual: bool
) -> None:
    """Refuse what goes well alone but not together, and scores that something repeats."""
    in_order = meaning.in_order() and not down.transposes
    reshaped = down.reshaped or meaning.reshaped
    if reshaped and unusual:
        raise NoMatch("the scores or the probabilities are reshaped, and have a sink or two parts")
    if not in_order and (reshaped or unusual or down.factors):
        raise NoMatch("the scores or the probabilities are transposed, and more than that")
    if down.factors and reshaped:
        raise NoMatch("the probabilities are reshaped, and multiplied by a run-time tensor")
    for before, after in pairwise(values):
        node, old, new = after.producer(), view.dims.of(before), view.dims.of(after)
        if node is None or node.op_type in (*SAME_ELEMENTS, "Transpose", "Slice", "Concat"):
            continue
        if old is None or new is None:
            continue
        known = [(a, b) for a, b in zip(old, new, strict=False) if isinstance(a, int) and isinstance(b, int)]
        one_key = old[-1] == 1 != new[-1] and meaning.in_order()
        if len(old) < len(new) or one_key or any(a != b for a, b in known):
            raise NoMatch(f"'{node_name(node)}' repeats the scores along an axis that Q and K do not have")


def _of_rows(view: View, op: str, factor: ir.Value, result: Operand, dtype: ir.DataType) -> Operand:
    """Return the result after what was done to the probabilities of each row: a factor, or 0 on a condition."""
    if op in ("Where", "Not"):
        zero = Const(np.array(0, dtype.numpy()))
        return Call("Where", (factor, result, zero) if op == "Where" else (factor, zero, result))
    other: Operand = factor if view.dtype(factor) == dtype else Call("Cast", (factor,), {"to": int(dtype)})
    return Call(op, (result, other))


def _value_operand(view: View, value: ir.Value, dtype: ir.DataType) -> tuple[Operand, ir.DataType | None]:
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
    if found is None:
        raise NoMatch(f"V has an unknown type where Q has {dtype.name}")
    return Call("Cast", (value,), {"to": int(dtype)}), found


def _replace_metadata_readers(
    view: View, qk: Product, values: list[ir.Value], *, in_order: bool, reshaped: bool
) -> dict[ir.Value, Operand]:
    """Give nodes that read only the shape or type of the scores something else to read, so that the scores can go."""
    replaced: dict[ir.Value, Operand] = {}
    followed: Dims | None = None  # dear, and seldom asked for
    for value in values:
        for node, _ in view.metadata_readers(value):
            if node.op_type == "CastLike":
                to = {"to": int(float_dtype(view.dtype(value)))}
                replaced[node.outputs[0]] = Call("Cast", (required(node.inputs[0]),), to)
                continue
            if not in_order:
                raise NoMatch("the shape of transposed scores is read")
            if node.op_type == "Size":
                replaced[node.outputs[0]] = Call("ReduceProd", (_scores_shape(qk),), {"keepdims": 0})
                continue
            followed = followed or follow(view, values)
            sizes, own = (followed.of(x) or (None,) * qk.rank for x in (value, values[0]))
            read = range(len(sizes))[int_attribute(node, "start", 0) : int_attribute(node, "end", len(sizes))]
            more = len(sizes) - len(own)
            if reshaped and _reads_the_same(view, node, sizes, own):
                read, more = range(qk.rank), 0
            elif reshaped and any(i < more or sizes[i] is None or sizes[i] != own[i - more] for i in read):
                raise NoMatch("the shape of reshaped scores is read")
            shape = _scores_shape(qk)
            replaced[node.outputs[0]] = (
                slice_of(shape, read.start - more, read.stop - more) if len(read) < qk.rank else shape
            )
    return replaced


def _reads_the_same(view: View, shape: ir.Node, sizes: tuple[Token | None, ...], own: tuple[Token | None, ...]) -> bool:
    """Return whether all that is picked of a whole Shape, which is ``sizes``, is provably the same of ``own``."""
    output = shape.outputs[0]
    if output.is_graph_output() or "start" in shape.attributes or "end" in shape.attributes:
        return False
    for reader, _ in output.uses():
        bounds = [view.scalar(i) for i in reader.inputs[1:3]]
        steps = [view.scalar(i) for i in reader.inputs[4:]]
        if (
            None in bounds
            or steps not in ([], [1])
            or (reader.op_type, len(bounds)) not in (("Gather", 1), ("Slice", 2))
        ):
            return False
        first, *last = (int(b) for b in bounds if b is not None)
        picked = [s[first : last[0] if last else first + 1 or None] for s in (sizes, own)]
        if picked[0] != picked[1] or len(picked[0]) != 1 or None in picked[0]:
            return False
    return True


def _scores_shape(qk: Product) -> Operand:
    """[..., Sq, Skv] from the shapes of Q and K."""
    return join(shape_slice(qk.queries(), 0, -1), shape_slice(qk.keys(), -2, -1))
