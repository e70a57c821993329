"""Inputs for a model that nobody described: seeded, of the right type, within the range that the graph can index."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from intfa_onnx.errors import ModelError

# Sizes of dynamic dimensions that the caller does not give: the first axis is taken for the batch.
DEFAULT_BATCH, DEFAULT_LENGTH = 2, 32


def random_inputs(
    model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None, seed: int = 0
) -> dict[str, np.ndarray]:
    """Make one set of inputs.

    Floats are N(0, 1). Integers are drawn from the rows of the table that they index, 0 or 1 where they index none. An
    input whose name ends in ``mask`` is all ones: everything is attended. One symbol has one size in all inputs.

    Args:
        model: the model; its weights are not needed.
        shapes: sizes by input name, for dynamic inputs.
        seed: of numpy's default generator.
    Raises:
        ModelError: a shape names no input, contradicts the model, or an input is not a tensor.
    """
    rng = np.random.default_rng(seed)
    constants = {i.name for i in model.graph.initializer}
    values = [v for v in model.graph.input if v.name not in constants]
    shapes = dict(shapes or {})
    if unknown := sorted(set(shapes) - {v.name for v in values}):
        raise ModelError(f"no input named {unknown[0]!r}; the model has {', '.join(v.name for v in values)}")
    sizes: dict[str, int] = {}
    for value in values:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            if dim.dim_param:
                sizes.setdefault(dim.dim_param, size)
    limits = _index_limits(model.graph)
    return {v.name: _draw(v, _shape(v, shapes.get(v.name), sizes), limits.get(v.name, 2), rng) for v in values}


def load_inputs(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read one set of inputs from an ``.npz`` archive that names each array as the model names its input."""
    try:
        archive = np.load(path)
        return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"'{os.fspath(path)}' is not an .npz archive of inputs ({error})") from error


def _shape(value: onnx.ValueInfoProto, given: Sequence[int] | None, sizes: dict[str, int]) -> tuple[int, ...]:
    if value.type.WhichOneof("value") != "tensor_type":
        raise ModelError(f"input {value.name!r} is not a tensor; only tensors can be made up")
    dims = value.type.tensor_type.shape.dim
    if given is None:
        given = [
            d.dim_value
            if d.HasField("dim_value")
            else sizes.setdefault(d.dim_param or f"{value.name}.{axis}", DEFAULT_LENGTH if axis else DEFAULT_BATCH)
            for axis, d in enumerate(dims)
        ]
    fixed = [d.dim_value if d.HasField("dim_value") else None for d in dims]
    if len(given) != len(fixed) or any(f not in (None, g) for f, g in zip(fixed, given, strict=True)):
        declared = "x".join(str(f or d.dim_param or "?") for f, d in zip(fixed, dims, strict=True))
        raise ModelError(f"input {value.name!r} has shape {declared}, got {'x'.join(map(str, given))}")
    return tuple(given)


def _draw(value: onnx.ValueInfoProto, shape: tuple[int, ...], limit: int, rng: np.random.Generator) -> np.ndarray:
    dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    if value.name.endswith("mask"):
        return np.ones(shape, dtype)
    if np.issubdtype(dtype, np.integer) or dtype == np.bool_:
        return rng.integers(0, limit, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def _index_limits(graph: onnx.GraphProto) -> dict[str, int]:
    """Return, for each name that indexes a constant table, the number of its rows."""
    tables = {i.name: i.dims for i in graph.initializer}
    limits: dict[str, int] = {}
    for node in graph.node:
        if node.op_type == "Gather" and node.input[0] in tables:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            rows = tables[node.input[0]][axis]
            limits[node.input[1]] = min(rows, limits.get(node.input[1], rows))
    return limits
