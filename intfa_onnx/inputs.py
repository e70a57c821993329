"""Inputs for a model that nobody described: seeded, of the right type, within the range that the graph can index."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from zipfile import BadZipFile

import numpy as np
import onnx_ir as ir

from intfa_onnx.errors import ModelError, UnsupportedError

# Sizes of dynamic dimensions that the caller does not give: the first axis is taken for the batch.
DEFAULT_BATCH, DEFAULT_LENGTH = 2, 32


def random_inputs(
    model: ir.Model, shapes: Mapping[str, Sequence[int]] | None = None, seed: int = 0
) -> dict[str, np.ndarray]:
    """Make one set of inputs.

    Floats are N(0, 1). Integers are drawn from the rows of the table that they index, 0 or 1 where they index none. An
    input whose name ends in ``mask`` is all ones: everything is attended. One symbol has one size in all inputs.

    Args:
        model: the model; its weights are not read.
        shapes: sizes by input name, for dynamic inputs.
        seed: of numpy's default generator.
    Raises:
        ModelError: a shape names no input or contradicts the model, or an input is not a tensor of known rank.
    """
    rng = np.random.default_rng(seed)
    shapes = shapes or {}
    values = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    names = [str(v.name) for v in values]
    if unknown := sorted(set(shapes) - set(names)):
        raise ModelError(f"no input named {unknown[0]!r}; the model has {', '.join(names)}")
    dims = {name: _dims(value) for name, value in zip(names, values, strict=True)}
    sizes: dict[
        str, int
    ] = {}  # of each symbol; given ones first, so that they decide in whatever order the inputs stand
    for name, given in shapes.items():
        sizes |= {dim: size for dim, size in zip(dims[name], given, strict=False) if isinstance(dim, str)}
    feed = {}
    for name, value in zip(names, values, strict=True):
        shape = [
            dim if isinstance(dim, int) else sizes.setdefault(dim, DEFAULT_LENGTH if axis else DEFAULT_BATCH)
            for axis, dim in enumerate(dims[name])
        ]
        if list(shapes.get(name, shape)) != shape:
            declared, found = ("x".join(map(str, s)) for s in (dims[name], shapes[name]))
            raise ModelError(f"input {name!r} has shape {declared}, got {found}")
        feed[name] = _draw(value, shape, rng)
    return feed


def load_inputs(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read one set of inputs from an ``.npz`` archive that names each array as the model names its input."""
    try:
        archive = np.load(path)
        return {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, AttributeError, BadZipFile) as error:
        raise ModelError(f"'{os.fspath(path)}' is not an .npz archive of inputs ({error})") from error


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Read sizes as the command line gives them: ``NAME:DIMS``, e.g. ``input_ids:8x128``."""
    shapes = {}
    for text in texts:
        name, _, dims = text.rpartition(":")
        if name in shapes:
            raise UnsupportedError(f"--shapes gives {name!r} twice; leave one out")
        try:
            shapes[name] = tuple(int(d) for d in dims.split("x"))
        except ValueError:
            raise UnsupportedError(f"--shapes {text!r} is not NAME:DIMS, as in input_ids:8x128") from None
        if min(shapes[name]) < 1:
            raise UnsupportedError(
                f"--shapes {text!r} has a size below 1; give the sizes of one run, as in input_ids:8x128"
            )
    return shapes


def _dims(value: ir.Value) -> list[int | str]:
    """Return sizes and symbols; a dimension without a symbol gets one of its own."""
    if not isinstance(value.type, ir.TensorType) or value.shape is None:
        raise ModelError(f"input {value.name!r} is not a tensor of known rank; give it with --inputs")
    return [
        dim if isinstance(dim, int) else dim.value or f"{value.name}.{axis}" for axis, dim in enumerate(value.shape)
    ]


def _draw(value: ir.Value, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    assert value.dtype is not None
    dtype = value.dtype.numpy()
    if str(value.name).endswith("mask"):
        return np.ones(shape, dtype)
    if np.issubdtype(dtype, np.integer) or dtype == np.bool_:
        return rng.integers(0, _rows(value), shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def _rows(value: ir.Value) -> int:
    """Return the rows of the smallest constant table that the value indexes, 2 if it indexes none."""
    rows: list[int] = []
    for node in value.consumers():
        table = node.inputs[0]
        if node.op_type == "Gather" and table is not None and table.const_value is not None:
            rows.append(table.const_value.shape.numpy()[node.attributes.get_int("axis", 0)])
    return min(rows, default=2)
