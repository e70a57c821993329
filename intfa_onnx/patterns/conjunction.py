"""What is said of an element of a boolean mask: a conjunction of conditions on query, key and batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from intfa_onnx.patterns.linear import Linear
from intfa_onnx.patterns.match import Call, Operand


@dataclass(frozen=True)
class AtLeastZero:
    """The condition ``form >= 0``."""

    form: Linear


@dataclass(frozen=True)
class Given:
    """A boolean tensor of the graph that does not depend on the query, or its inverse."""

    value: ir.Value
    wanted: bool
    without_heads: bool = False  # it is [batch, 1, keys], its first axis the mask's, which has one for heads behind it

    def mask(self) -> Operand:
        """Return where it holds, its axes aligned with the last ones of the mask."""
        value = Call("Unsqueeze", (self.value,), {"axes": [1]}) if self.without_heads else self.value
        return value if self.wanted else Call("Not", (value,))


Conjunction = tuple[AtLeastZero | Given, ...]
TRUE: Conjunction = ()
FALSE: Conjunction = (AtLeastZero(Linear(-1)),)

# ``a op b`` as (form, whether form > 0 is meant instead of form >= 0).
COMPARISONS: dict[str, Callable[[Linear, Linear], tuple[Linear, bool]]] = {
    "LessOrEqual": lambda a, b: (b - a, False),
    "Less": lambda a, b: (b - a, True),
    "GreaterOrEqual": lambda a, b: (a - b, False),
    "Greater": lambda a, b: (a - b, True),
}


def at_least_zero(form: Linear) -> Conjunction:
    """Return ``form >= 0``, decided where every position and size gives the same."""
    return TRUE if form.never_negative() else FALSE if (-form - 1).never_negative() else (AtLeastZero(form),)


def decided(holds: bool) -> Conjunction:
    """Return the conjunction that always holds, or never."""
    return TRUE if holds else FALSE


def both(a: Conjunction | None, b: Conjunction | None) -> Conjunction | None:
    """Return ``a and b``; None where one is not known and the other may hold."""
    if FALSE in (a, b):
        return FALSE
    return None if a is None or b is None else (*a, *(t for t in b if t not in a))


def either(a: Conjunction | None, b: Conjunction | None) -> Conjunction | None:
    """Return ``a or b`` where it is a conjunction: one of them is constant or follows from the other."""
    if TRUE in (a, b):
        return TRUE
    if a is None or b is None:
        return None
    return b if _implies(a, b) else a if _implies(b, a) else None


def _implies(a: Conjunction, b: Conjunction) -> bool:
    """Return whether each term of ``b`` is one of ``a`` or follows from one."""
    bounds = [t.form for t in a if isinstance(t, AtLeastZero)]
    return a == FALSE or all(
        t in a or (isinstance(t, AtLeastZero) and any((t.form - f).never_negative() for f in bounds)) for t in b
    )
