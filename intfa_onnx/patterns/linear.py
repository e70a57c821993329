"""Integers as linear forms over sizes and positions: ``i + past - 6`` for the place ``i`` of a query."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from intfa_onnx.patterns.sizes import Polynomial, Token, terms


@dataclass(frozen=True)
class Axis:
    """The position along an axis, counted from the back: 1 is the key's, 2 the query's."""

    from_back: int


# What a form is linear in: a position, a size or product of sizes not known statically, or a number the graph computes.
Atom = Axis | str | tuple[ir.Value, int] | Polynomial | ir.Value


@dataclass(frozen=True)
class Linear:
    """``constant + sum(factor * atom)``; equal forms are equal numbers."""

    constant: int = 0
    terms: frozenset[tuple[Atom, int]] = frozenset()

    @staticmethod
    def of(atom: Atom | int) -> Linear:
        """Return the form of one atom or number."""
        return Linear(atom) if isinstance(atom, int) else Linear(0, frozenset({(atom, 1)}))

    def __add__(self, other: Linear | int) -> Linear:
        if isinstance(other, int):
            return Linear(self.constant + other, self.terms)
        factors = dict(self.terms)
        for atom, factor in other.terms:
            factors[atom] = factors.get(atom, 0) + factor
        return Linear(self.constant + other.constant, _nonzero(factors.items()))

    def __mul__(self, factor: int) -> Linear:
        return Linear(self.constant * factor, _nonzero((a, f * factor) for a, f in self.terms))

    def __neg__(self) -> Linear:
        return self * -1

    def __sub__(self, other: Linear | int) -> Linear:
        return self + (-other)

    def factor(self, atom: Atom) -> int:
        """Return the factor of an atom, 0 where it does not occur."""
        return dict(self.terms).get(atom, 0)

    def number(self) -> int | None:
        """Return the number where the form is one."""
        return None if self.terms else self.constant

    def never_negative(self) -> bool:
        """Return whether the form is provably not negative: sizes and positions are not."""
        return self.constant >= 0 and all(f > 0 and not isinstance(a, ir.Value) for a, f in self.terms)


def _nonzero(terms: Iterable[tuple[Atom, int]]) -> frozenset[tuple[Atom, int]]:
    return frozenset((atom, factor) for atom, factor in terms if factor)


def size_form(size: Token) -> Linear:
    """Return a size as a form; products of sizes are atoms of it."""
    return _sum(Linear.of(atom) * n for n, atom in terms(size))


def _sum(forms: Iterable[Linear]) -> Linear:
    return sum(forms, Linear())
