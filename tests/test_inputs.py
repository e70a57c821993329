"""Made-up inputs: reproducible, in range, and of one size per symbol."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from small_models import attention_model, embedding_model

from intfa_onnx.errors import ModelError, UnsupportedError
from intfa_onnx.inputs import load_inputs, parse_shapes, random_inputs


def test_integers_stay_in_range_and_masks_are_ones() -> None:
    feed = random_inputs(ir.from_proto(embedding_model(rows=3)), {"ids": (50, 40)})
    assert set(np.unique(feed["ids"])) == {0, 1, 2}, "every row of the table is used, and no other"
    assert feed["mask"].shape == (50, 40), "the mask shares its symbols with ids"
    assert feed["mask"].min() == 1


def test_the_seed_decides() -> None:
    first, again, other = (random_inputs(ir.from_proto(attention_model()), seed=seed)["Q"] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.dtype == np.float32
    assert first.shape[1::2] == (2, 16)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"X": (1, 2)}, "no input named 'X'; the model has Q, K, V"),
        ({"Q": (2, 2, 4, 17)}, "'Q' has shape Bx2xSx16, got 2x2x4x17"),
        ({"Q": (2, 2, 4)}, "'Q' has shape Bx2xSx16, got 2x2x4"),
        ({"Q": (2, 2, 4, 16), "K": (2, 2, 5, 16)}, "'Q' has shape Bx2xSx16, got 2x2x4x16"),
    ],
)
def test_shapes_that_contradict_the_model(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        random_inputs(ir.from_proto(attention_model()), shapes)


def test_an_input_of_unknown_rank() -> None:
    model = attention_model()
    model.graph.input[1].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match="input 'K' is not a tensor of known rank; give it with --inputs"):
        random_inputs(ir.from_proto(model))


def test_integers_stay_within_what_they_index() -> None:
    """Rows of the smallest table, along the axis that is gathered; 0 or 1 where an integer indexes nothing."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 18]>
        m (int64[400] ids, int64[400] flags) => (float[N, 4] A, float[4, N] B, float[N] C, int64[1] D)
          <float[9, 4] rows, float[4, 3] columns, int64[1] first = {0}> {
            A = Gather <axis = 0> (rows, ids)
            B = Gather <axis = 1> (columns, ids)
            C = Cast <to = 1> (ids)
            E = Gather (ids, first)
            D = Add (flags, E)
        }"""
    )
    for name, shape in (("rows", (9, 4)), ("columns", (4, 3))):
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(shape, np.float32), name))
    feed = random_inputs(ir.from_proto(model))
    assert np.unique(feed["ids"]).tolist() == [0, 1, 2]
    assert np.unique(feed["flags"]).tolist() == [0, 1]


def test_sizes_that_nobody_gives_and_truths() -> None:
    """Two of the first axis, 32 of the others; booleans are both."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 18]>
        m (bool[B, S] flags, float[S] x) => (bool[B, S] A, float[S] C) { A = Not (flags) C = Relu (x) }"""
    )
    feed = random_inputs(ir.from_proto(model))
    assert (feed["flags"].shape, feed["x"].shape) == ((2, 32), (32,))
    assert (feed["flags"].dtype, set(feed["flags"].ravel().tolist())) == (np.bool_, {False, True})


def test_sizes_as_text() -> None:
    assert parse_shapes(["a:0:1x128", "b:7"]) == {"a:0": (1, 128), "b": (7,)}
    with pytest.raises(UnsupportedError, match="gives 'a' twice"):
        parse_shapes(["a:1", "a:2"])


def test_archive(tmp_path: Path) -> None:
    path = tmp_path / "feed.npz"
    np.savez(path, x=np.arange(3))
    assert load_inputs(path)["x"].tolist() == [0, 1, 2]
    archive = path.read_bytes()
    for content in (b"not an archive", b"", archive[: len(archive) // 2]):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"feed\.npz' is not an \.npz archive"):
            load_inputs(path)
