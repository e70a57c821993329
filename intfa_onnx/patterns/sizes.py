"""Arithmetic of sizes that are not known: polynomials over them, in one normal form.

The key axis of a decoder with a cache is ``past + new``, the leading axis of a product with merged heads ``batch * 8``.
Two ways to compute a size are provably equal where their normal forms are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

# A symbolic name of the model; or (value, axis) where nothing more is known.
Atom = str | tuple[ir.Value, int]
_Monomial = frozenset[tuple[Atom, int]]  # atoms with their powers


@dataclass(frozen=True)
class Polynomial:
    """A sum of products, none of them simpler than that: not an int, and not one atom.

    Attributes:
        terms: products of atoms, each with its coefficient, which is not 0.
    """

    terms: frozenset[tuple[_Monomial, int]]


# Equal tokens are equal sizes.
Token = int | Atom | Polynomial


def named(name: str) -> Token:
    """Return a model's symbolic name as a token: torch.export calls the length of a cache with new keys "s0 + s21"."""
    if not re.fullmatch(r"\w+(\*\w+)*( \+ \w+(\*\w+)*)*", name):
        return name  # with a division, say: not a polynomial
    return total(product(int(f) if f.isdecimal() else f for f in term.split("*")) for term in name.split(" + "))


def terms(token: Token) -> list[tuple[int, Token]]:
    """Return (coefficient, product) pairs that add up to the token; the product of the constant one is 1."""
    return [(n, _normal(Counter({monomial: 1}))) for monomial, n in _terms(token).items()]


def total(tokens: Iterable[Token]) -> Token:
    """Return the sum."""
    terms: Counter[_Monomial] = Counter()
    for token in tokens:
        terms.update(_terms(token))
    return _normal(terms)


def product(tokens: Iterable[Token]) -> Token:
    """Return the product."""
    result: Token = 1
    for token in tokens:
        terms: Counter[_Monomial] = Counter()
        for a, n in _terms(result).items():
            for b, m in _terms(token).items():
                terms[_monomial(Counter(dict(a)) + Counter(dict(b)))] += n * m
        result = _normal(terms)
    return result


def difference(a: Token, b: Token) -> Token | None:
    """Return ``a - b`` where no coefficient of it is negative, so that it is a size; otherwise None."""
    terms = _terms(a)
    terms.subtract(_terms(b))
    return None if any(n < 0 for n in terms.values()) else _normal(terms)


def quotient(a: Token, b: Token) -> Token | None:
    """Return ``a / b`` where it is exact for all atoms, and ``b`` has one term; otherwise None."""
    divisor = _terms(b)
    if len(divisor) != 1:
        return None
    ((atoms, number),) = divisor.items()
    powers, terms = Counter(dict(atoms)), Counter[_Monomial]()
    for monomial, coefficient in _terms(a).items():
        given = Counter(dict(monomial))
        if coefficient % number or powers - given:
            return None
        terms[_monomial(given - powers)] = coefficient // number
    return _normal(terms)


def _terms(token: Token) -> Counter[_Monomial]:
    if isinstance(token, Polynomial):
        return Counter(dict(token.terms))
    if isinstance(token, int):
        return Counter({frozenset[tuple[Atom, int]](): token} if token else {})
    return Counter({frozenset({(token, 1)}): 1})


def _monomial(powers: Counter[Atom]) -> _Monomial:
    return frozenset(powers.items())


def _normal(terms: Counter[_Monomial]) -> Token:
    kept = {monomial: n for monomial, n in terms.items() if n}
    if not kept:
        return 0
    if len(kept) == 1:
        ((monomial, n),) = kept.items()
        if not monomial:
            return n
        ((atom, power), *others) = monomial
        if n == power == 1 and not others:
            return atom
    return Polynomial(frozenset(kept.items()))
