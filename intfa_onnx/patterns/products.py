"""The two matrix products of an attention, MatMul or Einsum, read as operands with the axes in one order.

A product is read by the letters of its axes, as Einsum writes them: a MatMul of three axes is ``zmk,zkn->zmn``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import ascii_lowercase, ascii_uppercase

import onnx_ir as ir

from intfa_onnx.patterns.match import Call, NoMatch, Operand, transpose
from intfa_onnx.patterns.view import View, int_attribute


@dataclass(frozen=True, eq=False)
class Product:
    """Two operands, each with the permutation that brings it to the standard order of the axes that it has.

    Attributes:
        first: Q for Q K^T; P for P V.
        first_perm: brings ``first`` to [..., Sq, D]; for P V as P is in Q K^T.
        second: K for Q K^T; V for P V.
        second_perm: brings ``second`` to [..., Skv, D], or [..., Skv, Dv].
        result_perm: brings [..., Sq, Skv], or [..., Sq, Dv], to the product's output.
        rank: number of axes of the result.
        first_shared, second_shared: axes of the result that an operand does not have: it is the same along them.
        factor: the product's own.
        more: further parts of ``second``, which follow it along the keys, stored in the same way.
    """

    first: ir.Value
    first_perm: tuple[int, ...]
    second: ir.Value
    second_perm: tuple[int, ...]
    result_perm: tuple[int, ...]
    rank: int
    first_shared: tuple[int, ...] = ()
    second_shared: tuple[int, ...] = ()
    factor: float = 1.0
    more: tuple[ir.Value, ...] = ()

    def queries(self) -> Operand:
        """Return ``first`` in the standard order of axes."""
        return _ordered(self.first, self.first_perm, self.first_shared)

    def keys(self, parts: Sequence[Operand] | None = None) -> Operand:
        """Return ``second`` in the standard order of axes, put together from its parts, or from what replaces them."""
        ordered = tuple(_ordered(x, self.second_perm, self.second_shared) for x in parts or (self.second, *self.more))
        return Call("Concat", ordered, {"axis": self.rank - 2}) if self.more else ordered[0]

    def heads(self, view: View) -> tuple[int | None, int | None]:
        """Return the number of heads of both operands of a product with four axes, where known."""
        both = (
            (self.first, self.first_perm, self.first_shared),
            (self.second, self.second_perm, self.second_shared),
        )
        first, second = (
            None if self.rank != 4 else 1 if 1 in shared else view.dim(x, perm[-3]) for x, perm, shared in both
        )
        return first, second


def _ordered(x: Operand, perm: tuple[int, ...], shared: tuple[int, ...]) -> Operand:
    ordered = transpose(x, perm)
    return Call("Unsqueeze", (ordered,), {"axes": list(shared)}) if shared else ordered


def joined(view: View, parts: list[Product]) -> Product:
    """Return several products over parts of the keys as one.

    Raises:
        NoMatch: their operands differ in more than the number of keys.
    """
    first = parts[0]
    for part in parts[1:]:
        if _storage(part) != _storage(first):
            raise NoMatch("parts of the keys are stored in different ways")
        for axis in first.second_perm[:-2]:
            sizes = [view.dims.dim(p.second, axis) for p in (first, part)]
            if sizes[0] != sizes[1] and any(isinstance(s, int) for s in sizes):
                raise NoMatch("parts of the keys differ in batch or heads")
        channels = [view.dim(p.second, first.second_perm[-1]) for p in (first, part)]
        if channels[0] != channels[1] or None in channels or view.dtype(part.second) != view.dtype(first.second):
            raise NoMatch("parts of the keys do not provably have the same channels and type")
    return replace(first, more=tuple(p.second for p in parts[1:]))


def _storage(product: Product) -> tuple[object, ...]:
    perms = product.first_perm, product.second_perm, product.result_perm
    return (*perms, product.first_shared, product.second_shared, product.factor)


def operands(node: ir.Node | None) -> tuple[ir.Value, ir.Value] | None:
    """Return what a node is the product of; None where it is not a product of two tensors."""
    if node is None:
        return None
    if node.domain == "com.microsoft" and node.op_type == "MatMulIntegerToFloat":
        return _before_quantization(node.inputs[:2], node.inputs[2:4], node.inputs[4:6])
    plain = node.op_type in ("MatMul", "Einsum") and node.domain in ("", "ai.onnx")
    if plain or (node.domain, node.op_type) == ("com.microsoft", "FusedMatMul"):
        first, second = (*node.inputs, None, None)[:2]
        return (first, second) if first is not None and second is not None and len(node.inputs) == 2 else None
    return _integer_operands(node) if node.op_type == "Mul" and node.domain in ("", "ai.onnx") else None


def _integer_operands(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """Return a and b for ``Cast(MatMulInteger(qa, qb)) * (scale_a * scale_b)``, as dynamic quantization writes it."""
    for value, scale in (node.inputs, node.inputs[::-1]):
        cast, scales = (v.producer() if v is not None else None for v in (value, scale))
        source = cast.inputs[0] if cast is not None and cast.op_type == "Cast" else None
        product = source.producer() if source is not None else None
        if product is not None and scales is not None and (product.op_type, scales.op_type) == ("MatMulInteger", "Mul"):
            return _before_quantization(product.inputs[:2], scales.inputs, product.inputs[2:4])
    return None


def _before_quantization(
    codes: Sequence[ir.Value | None], scales: Sequence[ir.Value | None], zeros: Sequence[ir.Value | None]
) -> tuple[ir.Value, ir.Value] | None:
    """Return the two tensors that DynamicQuantizeLinear made codes, scales and zero points of."""
    nodes = [v.producer() if v is not None else None for v in codes]
    first, second = nodes
    if first is None or second is None or any(n.op_type != "DynamicQuantizeLinear" for n in (first, second)):
        return None
    belong = [x.producer() if x is not None else None for x in (*scales, *zeros)]
    if belong not in ([first, second, first, second], [second, first, first, second]):
        return None
    a, b = first.inputs[0], second.inputs[0]
    return (a, b) if a is not None and b is not None else None


def is_quantized(node: ir.Node) -> bool:
    """Return whether a product is one of integers."""
    return node.op_type in ("Mul", "MatMulIntegerToFloat")


def qk_product(view: View, node: ir.Node, key_axis: int = -1) -> Product:
    """Read a product as ``scores = Q K^T``.

    Args:
        view: facts about the model.
        node: the product, or a Concat of several.
        key_axis: the axis of the output that the softmax goes over: it belongs to the keys.

    Raises:
        NoMatch: the ranks are unknown, or the Einsum is not this product.
    """
    if node.op_type == "Concat":
        parts = [qk_product(view, p) for i in node.inputs if i is not None and (p := i.producer()) is not None]
        if any(p.first is not parts[0].first for p in parts):
            raise NoMatch("parts of the keys are multiplied with different queries")
        return joined(view, parts)
    (first, second), (a, b, out), factor = _letters(view, node)
    key = out[key_axis]
    if key in a:
        first, second, a, b = second, first, b, a
    contracted = [c for c in a if c in b and c not in out]
    queries = [c for c in out if c in a and c not in b]
    if key in a or len(contracted) != 1 or not queries:
        raise NoMatch(f"{_named(node)} is not Q K^T")
    # Of several axes that the keys do not have, the last is the queries': the others share the keys among heads.
    rows = queries[-1]
    batch = "".join(c for c in out if c not in (key, rows))
    first_perm, first_shared = _order(a, batch, rows + contracted[0], node)
    second_perm, second_shared = _order(b, batch, key + contracted[0], node)
    standard = batch + rows + key
    result_perm = tuple(standard.index(c) for c in out)
    return Product(first, first_perm, second, second_perm, result_perm, len(out), first_shared, second_shared, factor)


def pv_product(view: View, node: ir.Node, side: int, axes: tuple[int, ...] | None = None) -> Product:
    """Read a product as ``P V`` with P on the given side.

    Args:
        view: facts about the model.
        node: the product.
        side: input by which P enters.
        axes: which axis of [..., Sq, Skv] each axis of P is; None where they are in this order.

    Raises:
        NoMatch: the ranks are unknown or differ, or the product is another one.
    """
    (first, second), (p, v, out), factor = _letters(view, node)
    if side == 1:
        first, second, p, v = second, first, v, p
    axes = tuple(range(len(p))) if axes is None else axes
    if len(p) != len(axes):
        raise NoMatch(f"the probabilities have {len(p)} axes where Q K^T has {len(axes)}")
    standard = "".join(p[axes.index(a)] for a in range(len(axes)))
    batch, rows, keys = standard[:-2], standard[-2], standard[-1]
    channels = [c for c in v if c not in p]
    if keys in out or keys not in v:
        raise NoMatch(f"{_named(node)} is not P V: it contracts the queries")
    if len(channels) != 1 or rows in v or sorted(out) != sorted(batch + rows + channels[0]):
        raise NoMatch(f"{_named(node)} is not P V")
    second_perm, second_shared = _order(v, batch, keys + channels[0], node)
    result = batch + rows + channels[0]
    result_perm = tuple(result.index(c) for c in out)
    first_perm = tuple(axes.index(a) for a in range(len(axes)))
    return Product(first, first_perm, second, second_perm, result_perm, len(p), (), second_shared, factor)


def _letters(view: View, node: ir.Node) -> tuple[tuple[ir.Value, ir.Value], tuple[str, str, str], float]:
    """Return the operands of a product, the letters of their axes and of the output's, and a constant factor."""
    found = operands(node)
    if found is None:
        raise NoMatch(f"{node.op_type} is not a product of two tensors")
    ranks = [view.rank(x) for x in found]
    if node.op_type == "Einsum":
        return found, _equation(node, ranks), 1.0
    known = [r for r in (*ranks, view.rank(node.outputs[0])) if r is not None]
    if not known:
        raise NoMatch("the ranks of the products' operands are unknown")
    first, second = (max(known) if r is None else r for r in ranks)
    if min(first, second) < 2 or any(int_attribute(node, name, 0) for name in ("transBatchA", "transBatchB")):
        raise NoMatch(f"{_named(node)} is not a product of matrices")
    batch = ascii_uppercase[: max(first, second) - 2]
    a, b = batch[len(batch) - first + 2 :] + "mk", batch[len(batch) - second + 2 :] + "kn"
    if int_attribute(node, "transA", 0):
        a = a[:-2] + "km"
    if int_attribute(node, "transB", 0):
        b = b[:-2] + "nk"
    factor = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 1.0
    return found, (a, b, batch + "mn"), factor


def _equation(node: ir.Node, ranks: list[int | None]) -> tuple[str, str, str]:
    """Return the letters of an Einsum's operands and output, those that ``...`` stands for in capitals."""
    text = node.attributes["equation"].as_string().replace(" ", "")
    if text.count(",") != 1 or "->" not in text or text != text.lower():
        raise NoMatch(f"Einsum '{text}' is not a product of two tensors with named axes")
    given, out = text.split("->")
    sides = given.split(",")
    if "." in text:
        hidden = {r - len(s) + 3 for r, s in zip(ranks, sides, strict=True) if r is not None and "..." in s}
        if len(hidden) != 1 or None in ranks or "..." not in out:
            raise NoMatch(f"Einsum '{text}' does not say how many axes its '...' are")
        sides = [s.replace("...", ascii_uppercase[: max(hidden)]) for s in sides]
        out = out.replace("...", ascii_uppercase[: max(hidden)])
    a, b = sides
    if any(len(set(letters)) != len(letters) or set(letters) - _LETTERS for letters in (a, b, out)) or len(out) < 2:
        raise NoMatch(f"Einsum '{text}' takes a diagonal")
    return a, b, out


_LETTERS = set(ascii_lowercase + ascii_uppercase)


def _named(node: ir.Node) -> str:
    return f"Einsum '{node.attributes['equation'].as_string()}'" if node.op_type == "Einsum" else node.op_type


def _order(letters: str, batch: str, matrix: str, node: ir.Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the permutation that brings an operand to ``batch + matrix``, and the axes of it that it lacks."""
    if set(letters) - set(batch + matrix) or not set(matrix) <= set(letters):
        raise NoMatch(f"{_named(node)} is not a product of an attention")
    shared = tuple(axis for axis, c in enumerate(batch) if c not in letters)
    return tuple(letters.index(c) for c in batch + matrix if c in letters), shared
