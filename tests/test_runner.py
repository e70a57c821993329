"""The Polygraphy runners."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from attention_graphs import MASK, feed, parse
from small_models import attention_model
from test_portable import TWO

import intfa_onnx

pytest.importorskip("polygraphy")

from intfa_onnx.runner import OrtRunner, ReferenceRunner


@pytest.mark.parametrize("runner", [OrtRunner, ReferenceRunner])
def test_a_rewritten_model_runs(tmp_path: Path, runner: type[OrtRunner | ReferenceRunner]) -> None:
    path = tmp_path / "model.onnx"
    intfa_onnx.rewrite(attention_model()).save(path)
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 2, 5, 16)).astype(np.float32) for _ in range(3))
    with runner(path, name="mine") as active:
        metadata = active.get_input_metadata(use_numpy_dtypes=False)
        assert list(metadata) == ["Q", "K", "V"]
        assert list(metadata["Q"].shape)[1::2] == [2, 16]
        y = active.infer({"Q": q, "K": k, "V": v})["Y"]
        assert active.name == "mine"
    scores = 0.25 * q @ k.swapaxes(2, 3)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True) @ v
    # About six steps of V's INT8 code: room for the codes of Q, K and P; a wrong layout or scale is off by far more.
    assert np.abs(y - expected).max() < 0.05 * np.abs(v).max()


def test_a_portable_model_runs_the_operator(tmp_path: Path) -> None:
    """Not its float functions, of which onnx.reference cannot tell several apart."""
    model = parse(TWO, MASK)
    values, outputs = feed(model), []
    for portable in (False, True):
        path = tmp_path / f"{portable}.onnx"
        intfa_onnx.rewrite(model, portable=portable).save(path)
        with ReferenceRunner(path) as runner:
            outputs.append(runner.infer(dict(values))["Y"])
    np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize("rows", [64, 65, 512])
def test_gather_elements_of_a_long_axis(tmp_path: Path, rows: int) -> None:
    text = f"""<ir_version: 9, opset_import: ["": 18]>
        m (float[2, {rows}] X, int64[1, 3] I) => (float[1, 3] Y) {{ Y = GatherElements <axis = 1> (X, I) }}"""
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    x = np.arange(2 * rows, dtype=np.float32).reshape(2, rows)
    with ReferenceRunner(path) as runner:
        y = runner.infer({"X": x, "I": np.array([[rows - 1, 0, -1]], np.int64)})["Y"]
    assert y.tolist() == [[rows - 1, 0, rows - 1]]
