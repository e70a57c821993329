"""Masks, factors and guards between the softmax and the product with V."""

from __future__ import annotations

import pytest
from attention_graphs import BOOL, LAST, PV, S, check_raise, feed, parse, rejection, run

import intfa_onnx

LOW = {
    "finite": "low = Constant <value = float {-3.4028235e38}> ()\n",
    "-inf": "low = Constant <value = float {-inf}> ()\n",
}
AGAIN = {
    "kept where true": "X = Where (M, s, low)\n p = Softmax <axis = -1> (X)\n P = Where (M, p, zero)\n",
    "by its inverse": (
        "N = Not (M)\n X = Where (N, low, s)\n p = Softmax <axis = -1> (X)\n N2 = Not (M)\n P = Where (N2, zero, p)\n"
    ),
    "multiplied": "X = Where (M, s, low)\n p = Softmax <axis = -1> (X)\n b = Cast <to = 1> (M)\n P = Mul (b, p)\n",
}


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("kind", AGAIN)
def test_masked_again_after_the_softmax(kind, low):
    """ESPnet, WeNet, DeBERTa: a row with every key masked is 0."""
    model = parse(LOW[low] + S + AGAIN[kind] + PV, ", bool[B, 1, 1, T] M")
    values = feed(model)
    check_raise(model, values=values)
    values["M"][1] = False
    rewritten = intfa_onnx.rewrite(model, portable=True)
    assert (run(rewritten.to_proto(), values)[0][1] == 0).all()
    if (kind, low) == ("multiplied", "-inf"):  # which keeps NaN
        assert "every key masked" in rewritten.attentions[0].notes[0]
    else:
        check_raise(model, values=values)
        assert rewritten.attentions[0].notes == ()


NOT_MASKED_AGAIN = {
    "another mask": (
        "X = Where (M, s, low)\n p = Softmax <axis = -1> (X)\n P = Where (N, p, zero)\n",
        "other than the mask",
    ),
    "its inverse": (
        "X = Where (M, s, low)\n p = Softmax <axis = -1> (X)\n P = Where (M, zero, p)\n",
        "other than the mask",
    ),
    "no mask": ("p = Softmax <axis = -1> (s)\n P = Where (M, p, zero)\n", "other than the mask"),
    "not by 0": ("X = Where (M, s, low)\n p = Softmax <axis = -1> (X)\n P = Where (M, p, scale)\n", "go through Where"),
    # Rows that the two masks leave no key in common average over the keys of the second.
    "after a second mask": (
        "u = Where (N, s, low)\n X = Where (M, u, low)\n p = Softmax <axis = -1> (X)\n P = Where (M, p, zero)\n",
        "not those alone",
    ),
    "after a bias that may be a mask": (
        "u = Add (s, A)\n X = Where (M, u, low)\n p = Softmax <axis = -1> (X)\n P = Where (M, p, zero)\n",
        "not those alone",
    ),
    "before a bias": (
        "u = Where (M, s, low)\n X = Add (u, A)\n p = Softmax <axis = -1> (X)\n P = Where (M, p, zero)\n",
        "changes masked scores",
    ),
    "by a factor per key": ("p = Softmax <axis = -1> (s)\n P = Mul (p, A)\n", "go through Mul"),
}


@pytest.mark.parametrize("kind", NOT_MASKED_AGAIN)
def test_masked_by_something_else_after_the_softmax(kind):
    body, reason = NOT_MASKED_AGAIN[kind]
    model = parse(LOW["finite"] + S + body + PV, BOOL + ", bool[B, 1, S, T] N, float[B, 1, S, T] A")
    assert reason in rejection(model)


def test_masked_again_beside_relative_positions():
    """A bias that is a product of its own is no mask (Transformer-XL, Conformer)."""
    body = (
        LOW["finite"] + S + "r = MatMul (Q, R)\n u = Add (s, r)\n X = Where (M, u, low)\n p = Softmax <axis = -1> (X)\n"
        "P = Where (M, p, zero)\n"
    )
    model = parse(body + PV, ", bool[B, 1, 1, T] M, float[1, 2, 16, T] R")
    values = feed(model)
    values["M"][1] = False
    check_raise(model, values=values)


ROWS = {
    "head mask": ("P = Mul (p, H)\n", ", float[1, 2, 1, 1] H"),
    "divided per query": ("P = Div (p, H)\n", ", float[B, 1, S, 1] H"),
    "rows dropped": ("P = Where (H, p, zero)\n", ", bool[B, 1, S, 1] H"),
    "rows dropped by the inverse": ("P = Where (H, zero, p)\n", ", bool[B, 1, S, 1] H"),
    "rows dropped by a condition on another tensor": (
        LAST + "low = Constant <value = float {-inf}> ()\n m = ReduceMax (H, last)\n e = Equal (m, low)\n"
        "P = Where (e, zero, p)\n",
        ", float[B, 1, S, T] H",
    ),
}


@pytest.mark.parametrize("kind", ROWS)
def test_whole_rows_of_probabilities(kind):
    """What is the same for all keys is done to the result."""
    body, inputs = ROWS[kind]
    check_raise(parse(S + "p = Softmax <axis = -1> (s)\n" + body + PV, inputs))


GUARDS = {
    "not NaN": "nan = IsNaN (p)\n ok = Not (nan)\n P = Where (ok, p, zero)\n",
    "all -inf": (
        LAST + "e = Equal (X, low)\n i = Cast <to = 7> (e)\n a = ReduceMin (i, last)\n c = Cast <to = 9> (a)\n"
        "P = Where (c, zero, p)\n"
    ),
    "maximum -inf": LAST + "m = ReduceMax (X, last)\n c = Equal (m, low)\n P = Where (c, zero, p)\n",
}


@pytest.mark.parametrize("kind", GUARDS)
def test_guards_of_rows_without_a_key(kind):
    body = LOW["-inf"] + S + "X = Where (M, s, low)\n p = Softmax <axis = -1> (X)\n" + GUARDS[kind] + PV
    model = parse(body, BOOL)
    values = feed(model)
    values["M"][0, 0, 1, :] = False
    rewritten = check_raise(model, values=values)
    assert (run(rewritten, values)[0][0, :, 1] == 0).all()
    assert intfa_onnx.rewrite(model).attentions[0].notes == ()
