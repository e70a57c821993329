"""Proof that scores and probabilities, reshaped on their way, still hold one row per query and one column per key."""

from __future__ import annotations

from itertools import pairwise

import onnx_ir as ir

from intfa_onnx.patterns.dims import Dims
from intfa_onnx.patterns.match import NoMatch
from intfa_onnx.patterns.view import View
from intfa_onnx.patterns.walk import SAME_ELEMENTS


class _Followed(Dims):
    """Sizes of the scores from step to step, on the premise that no mask is larger than what it is added to.

    The operator refuses a larger one, so the premise fails with an error and not with another result.
    """

    def same(self, value: ir.Value, as_: ir.Value) -> None:
        """Take over the sizes of ``as_`` for ``value``."""
        for axis, size in enumerate(self.of(as_) or ()):
            self._known[(value, axis)] = size


def follow(view: View, values: list[ir.Value]) -> Dims:
    """Return the sizes of scores and probabilities, each computed from the one before."""
    sizes = _Followed(view)
    for before, after in pairwise(values):
        node = after.producer()
        if (node is None or node.op_type not in SAME_ELEMENTS) and view.rank(after) == view.rank(before):
            sizes.same(after, before)
    return sizes


def check_same_rows(view: View, scores: list[ir.Value], probs: list[ir.Value]) -> None:
    """Check that the softmax goes over the keys of Q K^T, and that P enters the product as [..., queries, keys].

    Args:
        view: facts about the model.
        scores: from Q K^T to the operand of the softmax, each computed from the one before.
        probs: from the result of the softmax to the operand of the product with V.

    Raises:
        NoMatch: a reshape on the way may mix queries and keys with other axes.
    """
    values = [*scores, *probs]
    sizes = follow(view, values)
    start, middle, end = (sizes.of(x) for x in (values[0], scores[-1], values[-1]))
    if start is None or middle is None or middle[-1] != start[-1]:
        raise NoMatch("the scores are reshaped, and the softmax is not provably over the keys")
    if end is None or end[-2:] != start[-2:]:
        raise NoMatch("the probabilities are reshaped, and their last two axes are not provably those of Q K^T")
