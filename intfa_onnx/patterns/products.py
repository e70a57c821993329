"""The two matrix products of an attention, MatMul or Einsum, read as operands with the axes in one order."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from intfa_onnx.patterns.match import NoMatch
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
    """

    first: ir.Value
    first_perm: tuple[int, ...]
    second: ir.Value
    second_perm: tuple[int, ...]
    result_perm: tuple[int, ...]
    rank: int


def qk_product(view: View, node: ir.Node) -> Product:
    """Read ``scores = Q K^T`` with scores [..., Sq, Skv].

    Raises:
        NoMatch: the ranks are unknown or differ, or the Einsum is not this product.
    """
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
