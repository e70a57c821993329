"""The rewriter's work grows with the number of attentions, not with its square."""

from __future__ import annotations

import cProfile

import onnx
import pytest
from attention_graphs import parse

import intfa_onnx

POSITIONS = """
i0 = Constant <value = int64 {0}> ()
i1 = Constant <value = int64 {1}> ()
zeroth = Constant <value = int64[1] {0}> ()
two = Constant <value = int64[1] {2}> ()
around = Constant <value = int64[3] {0, 1, 3}> ()
middle = Constant <value = int64[2] {1, 2}> ()
low = Constant <value = float {-inf}> ()
slopes = Constant <value = float[1, 2, 1, 1] {0.5, 0.25}> ()
sizes = Shape (Q)
length = Gather (sizes, two)
s = Squeeze (length, zeroth)
k = Range (i0, s, i1)
kf = Cast <to = 1> (k)
q = Unsqueeze (k, around)
p = Unsqueeze (A, middle)
Y0 = Identity (Q)
"""
# Of the diagonal, the padding and a bias of the heads; {n} is the layer, {m} what comes behind it.
MASK = """
N{n} = Mul (slopes, kf)
c{n} = LessOrEqual (k, q)
C{n} = And (c{n}, p)
M{n} = Where (C{n}, N{n}, low)
"""
ATTENTION = """
t{n} = Transpose <perm = [0, 1, 3, 2]> (Y{n})
s{n} = MatMul (Y{n}, t{n})
x{n} = Add (s{n}, M{n})
p{n} = Softmax <axis = -1> (x{n})
Y{m} = MatMul (p{n}, Y{n})
"""


def decoder(layers: int, shared: bool) -> onnx.ModelProto:
    """Attention upon attention; each makes its own mask, or all read the first one's."""
    text = POSITIONS
    for n in range(layers):
        mask = MASK if n == 0 or not shared else ""
        attention = ATTENTION.replace("M{n}", "M0") if shared else ATTENTION
        text += (mask + attention).format(n=n, m=n + 1)
    return parse(f"{text} Y = Identity (Y{layers})", ", bool[B, S] A")


def calls(layers: int, shared: bool) -> int:
    """Return how many calls of Python functions a rewrite makes, which no load of the machine changes."""
    model, profile = decoder(layers, shared), cProfile.Profile()
    result = profile.runcall(intfa_onnx.rewrite, model)
    assert [a.decision for a in result.attentions] == ["replaced"] * layers
    assert {a.absorbed[-1] for a in result.attentions} == {"causal"}
    return sum(entry.callcount for entry in profile.getstats())


@pytest.mark.parametrize("shared", [False, True])
def test_work_per_attention_is_flat(shared: bool) -> None:
    calls(1, shared)  # what only the first rewrite of a process does
    few, more, many = (calls(layers, shared) for layers in (10, 20, 40))
    # Twice as many more layers, twice as many more calls; walking up to each mask once added 1.1 %.
    assert many - more == pytest.approx(2 * (more - few), rel=0.002)
