"""Rewritten models in ONNX Runtime with the native library: what the rewriter emits is what the operator takes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from attention_graphs import VARIANTS, feed, parse, run
from test_rewrite_scopes import function_model, if_model, loop_model

import intfa_onnx
from intfa_onnx import UnsupportedError

MODELS = {name: parse(*variant) for name, variant in VARIANTS.items()}
MODELS |= {"if": if_model(), "loop": loop_model(), "function": function_model()}


@pytest.fixture(scope="module")
def options() -> ort.SessionOptions:
    found = ort.SessionOptions()
    found.log_severity_level = 4
    try:
        intfa_onnx.register(found)
    except UnsupportedError as error:
        pytest.skip(str(error))
    return found


def run_native(model: onnx.ModelProto, values: dict[str, np.ndarray], options: ort.SessionOptions) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, values)[0]


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_variant_runs_in_int8(options, name, portable):
    """With the body in the file the kernel still wins: the error is that of INT8, not zero."""
    model = MODELS[name]
    rewritten = intfa_onnx.rewrite(model, portable=portable).to_proto()
    for shape in ((5, 7), (9, 3)):
        values = feed(model, *shape)
        if name == "if":
            values["C"] = np.array(True)
        got, want = run_native(rewritten, values, options), run(model, values)[0]
        error = np.linalg.norm(got - want) / np.linalg.norm(want)
        # Twice the 1.4 % that docs/accuracy.md gives for N(0, 1).
        assert 0 < error < 0.028, f"{error:.2%}"
