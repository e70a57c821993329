"""The two matrix products of an attention, MatMul or Einsum, read as operands with the axes in one order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from intfa_onnx.patterns.match import Call, NoMatch, Operand, transpose
from intfa_onnx.patterns.view import View


@dataclass(frozen=True, eq=False)
class Product:
    """Two operands, each with the permutation that brings it to the standard order of axes.

    Attributes:
        first: Q for Q K^T; P for P V.
        first_perm: brings ``first`` to [..., Sq, D], or [..., Sq, Skv].
        second: K for Q K^T; V for P V.
        second_perm: brings ``second`` to [..., Skv, D], or [..., Skv, Dv].
        result_perm: brings [..., Sq, Dv] to the product's output.
        rank: number of axes, the same everywhere.
        more: further parts of ``second``, which follow it along the keys, stored in the same way.
    """

    first: ir.Value
    first_perm: tuple[int, ...]
    second: ir.Value
    second_perm: tuple[int, ...]
    result_perm: tuple[int, ...]
    rank: int
    more: tuple[ir.Value, ...] = ()

    def keys(self, parts: Sequence[Operand] | None = None) -> Operand:
        """Return ``second`` in the standard order of axes, put together from its parts, or from what replaces them."""
        ordered = tuple(transpose(x, self.second_perm) for x in parts or (self.second, *self.more))
        return Call("Concat", ordered, {"axis": self.rank - 2}) if self.more else ordered[0]


def joined(view: View, parts: list[Product]) -> Product:
    """Return several products over parts of the keys as one.

    Raises:
        NoMatch: their operands differ in more than the number of keys.
    """
    first = parts[0]
    for part in parts[1:]:
        if (part.first_perm, part.second_perm, part.result_perm) != (
            first.first_perm,
            first.second_perm,
            first.result_perm,
        ):
            raise NoMatch("parts of the keys are stored in different ways")
        for axis in first.second_perm[:-2]:
            sizes = [view.dims.dim(p.second, axis) for p in (first, part)]
            if sizes[0] != sizes[1] and any(isinstance(s, int) for s in sizes):
                raise NoMatch("parts of the keys differ in batch or heads")
        channels = [view.dim(p.second, first.second_perm[-1]) for p in (first, part)]
        if channels[0] != channels[1] or None in channels or view.dtype(part.second) != view.dtype(first.second):
            raise NoMatch("parts of the keys do not provably have the same channels and type")
    return replace(first, more=tuple(p.second for p in parts[1:]))


def qk_product(view: View, node: ir.Node) -> Product:
    """Read ``scores = Q K^T`` with scores [..., Sq, Skv].

    Raises:
        NoMatch: the ranks are unknown or differ, or the Einsum is not this product.
    """
    if node.op_type == "Concat":
        parts = [qk_product(view, p) for i in node.inputs if i is not None and (p := i.producer()) is not None]
        if any(p.first is not parts[0].first for p in parts):
            raise NoMatch("parts of the keys are multiplied with different queries")
        return joined(view, parts)
    first, second = _operands(node)
    if node.op_type == "MatMul":
        rank = _rank(view, node, first, second)
        return Product(first, _identity(rank), second, _swapped(rank), _identity(rank), rank)
    a, b, out = _equation(node)
    if out[-1] in a:  # keys first: "bhjd,bhid->bhij" with the operands exchanged
        first, second, a, b = second, first, b, a
    contracted = [c for c in a if c in b and c not in out]
    if len(contracted) != 1 or out[-1] in a or out[-1] not in b or out[-2] in b or out[-2] not in a:
        raise NoMatch(f"Einsum '{_text(node)}' is not Q K^T")
    batch = out[:-2]
    return Product(
        first,
        _order(a, batch + out[-2] + contracted[0], node),
        second,
        _order(b, batch + out[-1] + contracted[0], node),
        _identity(len(out)),
        len(out),
    )


def pv_product(view: View, node: ir.Node, side: int) -> Product:
    """Read ``P V`` with P on the given side.

    Raises:
        NoMatch: the ranks are unknown or differ, P is on the right of a MatMul, or the Einsum is not this product.
    """
    first, second = _operands(node)
    if node.op_type == "MatMul":
        if side == 1:
            raise NoMatch("V P: the product contracts the queries")
        rank = _rank(view, node, first, second)
        return Product(first, _identity(rank), second, _identity(rank), _identity(rank), rank)
    p, v, out = _equation(node)
    if side == 1:
        first, second, p, v = second, first, v, p
    keys, batch = p[-1], p[:-2]
    channels = [c for c in v if c not in p]
    if len(p) < 2 or keys not in v or keys in out or len(channels) != 1 or p[-2] in v:
        raise NoMatch(f"Einsum '{_text(node)}' is not P V")
    standard = batch + p[-2] + channels[0]
    return Product(
        first,
        _identity(len(p)),
        second,
        _order(v, batch + keys + channels[0], node),
        tuple(_order(standard, out, node)),
        len(p),
    )


def _operands(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    if len(node.inputs) != 2 or node.inputs[0] is None or node.inputs[1] is None:
        raise NoMatch(f"{node.op_type} does not have two inputs")
    return node.inputs[0], node.inputs[1]


def _rank(view: View, node: ir.Node, first: ir.Value, second: ir.Value) -> int:
    ranks = [r for r in (view.rank(v) for v in (first, second, node.outputs[0])) if r is not None]
    if not ranks:
        raise NoMatch("the ranks of the products' operands are unknown")
    if len(set(ranks)) != 1:
        raise NoMatch(f"a product of operands of different rank ({sorted(set(ranks))})")
    return ranks[0]


def _equation(node: ir.Node) -> tuple[str, str, str]:
    text = _text(node).replace(" ", "")
    if "..." in text or text.count(",") != 1 or "->" not in text:
        raise NoMatch(f"Einsum '{text}' is not a product of two tensors with named axes")
    operands, out = text.split("->")
    a, b = operands.split(",")
    if any(len(set(labels)) != len(labels) for labels in (a, b, out)) or len(out) < 2:
        raise NoMatch(f"Einsum '{text}' takes a diagonal")
    return a, b, out


def _text(node: ir.Node) -> str:
    return node.attributes["equation"].as_string()


def _order(labels: str, wanted: str, node: ir.Node) -> tuple[int, ...]:
    if sorted(labels) != sorted(wanted):
        raise NoMatch(f"Einsum '{_text(node)}' is not a product of an attention")
    return tuple(labels.index(c) for c in wanted)


def _identity(rank: int) -> tuple[int, ...]:
    return tuple(range(rank))


def _swapped(rank: int) -> tuple[int, ...]:
    return (*range(rank - 2), rank - 1, rank - 2)
