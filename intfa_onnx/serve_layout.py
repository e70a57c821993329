"""A model repository for Triton Inference Server, written from a rewritten model.

Layout and configuration follow Triton's documents of the model repository and of ``model_config.proto``. Its ONNX
Runtime backend opens ``model_operations.op_library_filename`` as it stands, so that has to be a path that the server
sees; its TensorRT backend takes plugins on the command line.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import onnx_ir as ir

from intfa_onnx import model_io, native
from intfa_onnx.errors import ModelError, UnsupportedError
from intfa_onnx.op_schema import DOMAIN, OP_TYPE

# onnx_ir's names of element types, and Triton's
_TYPES = {
    **{t: f"TYPE_{t}" for t in ("BOOL", "STRING", "INT8", "INT16", "INT32", "INT64")},
    **{t: f"TYPE_{t}" for t in ("UINT8", "UINT16", "UINT32", "UINT64")},
    "FLOAT16": "TYPE_FP16",
    "BFLOAT16": "TYPE_BF16",
    "FLOAT": "TYPE_FP32",
    "DOUBLE": "TYPE_FP64",
}
_QUEUE_DELAY_US = 100  # how long the first request of a batch waits for company


@dataclass(frozen=True)
class Layout:
    """What was written, and how to serve it."""

    models: tuple[str, ...]
    """Names of the models in the repository."""
    max_batch_size: int
    """0: dynamic batching is off."""
    why_no_batching: str
    """Empty where dynamic batching is on."""
    launch: str
    """The command that starts the server."""


def write(
    folder: str | os.PathLike[str],
    model: str | os.PathLike[str],
    *,
    engine: str | os.PathLike[str] | None = None,
    name: str | None = None,
    max_batch_size: int = 32,
    mounted_at: str | None = None,
    force: bool = False,
) -> Layout:
    """Write ``<name>`` for the ONNX Runtime backend and, given an engine, ``<name>_trt`` for the TensorRT backend.

    Args:
        folder: The repository; made if absent. Other models in it are left alone.
        model: The rewritten ONNX model.
        engine: A TensorRT engine built from the same model.
        name: What clients call the model; by default its file name up to the first dot.
        max_batch_size: Most requests in one batch; 0 turns dynamic batching off.
        mounted_at: The repository's absolute path as the server sees it, e.g. in a container; by default ``folder``.
        force: Replace models of these names.
    Raises:
        ModelError: the model has no IntFlashAttention, a file cannot be read, or a target exists.
        UnsupportedError: a native library is missing, or an option or a tensor's type is not one that Triton takes.
    """
    folder, model = Path(folder), Path(model)
    name = name or model.name.partition(".")[0]
    seen_at = PurePosixPath(mounted_at or folder.resolve())
    if not seen_at.is_absolute():
        raise UnsupportedError(
            f"--mounted-at '{seen_at}' is not absolute. Give the path inside the server, e.g. /models"
        )
    if name in ("", ".", "..") or "/" in name:
        raise UnsupportedError(f"{name!r} cannot be the name of a model's folder. Give another --name")
    if max_batch_size < 0:
        raise UnsupportedError(f"--max-batch-size {max_batch_size} is negative (0 turns dynamic batching off)")
    loaded = model_io.load(model)
    if not any(node.domain == DOMAIN and node.op_type == OP_TYPE for node in model_io.all_nodes(loaded)):
        raise ModelError(f"'{model}' has no {DOMAIN}::{OP_TYPE} node. Rewrite it first: intfa-onnx rewrite")
    why_no_batching = _why_no_batching(loaded.graph) if max_batch_size else "--max-batch-size is 0"
    max_batch_size = 0 if why_no_batching else max_batch_size

    ort_library = native.get_library_path("ort")
    trt_library = native.get_library_path("trt") if engine is not None else None
    if engine is not None and not Path(engine).is_file():
        raise ModelError(f"there is no engine '{engine}'. Build it first: intfa-onnx build-engine {model}")
    with _new_model(folder / name, force) as new:
        model_io.save(loaded, new / "1" / "model.onnx")
        shutil.copyfile(ort_library, new / ort_library.name)
        operations = f"model_operations {{ op_library_filename: {_quoted(seen_at / name / ort_library.name)} }}"
        config = _config(loaded.graph, name, "onnxruntime", max_batch_size)
        (new / "config.pbtxt").write_text(f"{config}{operations}\n")
    launch = f"tritonserver --model-repository={seen_at}"
    if engine is None or trt_library is None:
        return Layout((name,), max_batch_size, why_no_batching, launch)

    trt_name = f"{name}_trt"
    with _new_model(folder / trt_name, force) as new:
        shutil.copyfile(engine, new / "1" / "model.plan")
        shutil.copyfile(trt_library, new / trt_library.name)
        (new / "config.pbtxt").write_text(_config(loaded.graph, trt_name, "tensorrt", max_batch_size))
    launch += f" --backend-config=tensorrt,plugins={seen_at / trt_name / trt_library.name}"
    return Layout((name, trt_name), max_batch_size, why_no_batching, launch)


def _why_no_batching(graph: ir.Graph) -> str:
    """Return why requests cannot be joined along the first dimension, or nothing if they can.

    Every input must begin with one and the same symbol. An output's first dimension may have lost its name in the
    export, but must not be a number or another dimension of the inputs.
    """
    first = {value.name: value.shape[0] if value.shape else None for value in graph.inputs}
    batch = next(iter(first.values()), None)
    for name, dim in first.items():
        if not isinstance(dim, ir.SymbolicDim) or dim.value is None:
            return f"input '{name}' does not begin with a named dynamic dimension"
        if dim != batch:
            return f"input '{name}' begins with dimension '{dim}', another with '{batch}'"
    others = {dim for value in graph.inputs for dim in (value.shape or ()) if isinstance(dim, ir.SymbolicDim)} - {batch}
    for value in graph.outputs:
        if not value.shape or not isinstance(value.shape[0], ir.SymbolicDim) or value.shape[0] in others:
            return f"output '{value.name}' does not begin with the batch dimension '{batch}'"
    return ""


def _config(graph: ir.Graph, name: str, backend: str, max_batch_size: int) -> str:
    """Return the text of config.pbtxt; with batching, Triton's dims leave out the first one."""
    lines = [f"name: {_quoted(name)}", f"backend: {_quoted(backend)}", f"max_batch_size: {max_batch_size}"]
    for kind, values in (("input", graph.inputs), ("output", graph.outputs)):
        for value in values:
            lines += [f"{kind} {{", f"  name: {_quoted(value.name)}", f"  data_type: {_type(value)}"]
            lines += [f"  {line}" for line in _dims(value, batched=max_batch_size > 0)] + ["}"]
    if max_batch_size:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {_QUEUE_DELAY_US} }}")
    return "\n".join(lines) + "\n"


def _type(value: ir.Value) -> str:
    found = value.dtype.name if value.dtype is not None else "of unknown type"
    if found not in _TYPES:
        raise UnsupportedError(f"'{value.name}' is {found} (Triton takes {', '.join(_TYPES)}). Add a Cast to the model")
    return _TYPES[found]


def _dims(value: ir.Value, batched: bool) -> list[str]:
    if value.shape is None:
        raise UnsupportedError(
            f"'{value.name}' has no shape. Run onnx.shape_inference on the model, or export it again"
        )
    dims = [dim if isinstance(dim, int) else -1 for dim in value.shape][batched:]
    if not dims:  # Triton has no empty dims: a scalar is a vector of one, reshaped
        return ["dims: [ 1 ]", "reshape { shape: [ ] }"]
    return [f"dims: [ {', '.join(map(str, dims))} ]"]


def _quoted(text: object) -> str:
    return json.dumps(str(text), ensure_ascii=False)  # the escapes of JSON are protobuf's too


@contextmanager
def _new_model(target: Path, force: bool) -> Iterator[Path]:
    """Yield a folder with a version ``1`` in it, that takes the target's place once it is complete."""
    if target.exists() and not force:
        raise ModelError(f"'{target}' exists. Give another --name, or --force to replace it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # hidden, since the server looks at every folder of the repository
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
            new, old = Path(scratch) / "new", Path(scratch) / "old"
            (new / "1").mkdir(parents=True)
            yield new
            if target.exists():
                os.replace(target, old)
            os.replace(new, target)
    except OSError as error:
        raise ModelError(f"cannot write '{target}': {error.strerror or error}. Choose a writable folder") from error
