"""ONNX Runtime sessions with our library registered, and ONNX Runtime's errors in words that say what to do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from intfa_onnx import native
from intfa_onnx.errors import ModelError
from intfa_onnx.op_schema import DOMAIN, OP_TYPE

if TYPE_CHECKING:
    import onnxruntime

# What ONNX Runtime says -> what it means and what helps. The first text found in the error wins.
_EXPLANATIONS = (
    (
        f"{DOMAIN}:{OP_TYPE}(-1) is not a registered function/op",
        "the model is rewritten, but this session does not know the operator; "
        "call intfa_onnx.register(session_options) before the session is made, or rewrite with --portable",
    ),
    ("INVALID_PROTOBUF", "not an ONNX file, or cut short; export it again"),
    ("NO_SUCHFILE", "the model file, or one of its external data files, is not there"),
    ("External data path does not exist", "keep the model's external data file beside it"),
    ("is under development and support for this is limited", "update onnxruntime, or export with a lower opset"),
    ("Unsupported model IR version", "update onnxruntime, or export with a lower IR version"),
)


def explain(message: str) -> str:
    """Return ONNX Runtime's message as one line, with what helps where that is known."""
    line = " ".join(message.split())
    for text, help_line in _EXPLANATIONS:
        if text in line:
            return f"{line} -> {help_line}"
    return line


def open_session(
    model: str | os.PathLike[str] | bytes,
    *,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 0,
    register_library: bool = True,
) -> onnxruntime.InferenceSession:
    """Open an ONNX Runtime session that knows ``IntFlashAttention``.

    Args:
        model: path of a model, or a serialized model.
        providers: ONNX Runtime execution providers, in order of preference.
        threads: threads within one operator; 0 lets ONNX Runtime choose.
        register_library: without it, a rewritten model runs only if it was made ``portable``.
    Raises:
        UnsupportedError: ONNX Runtime is missing or too old, or the native library is missing.
        ModelError: ONNX Runtime refuses the model; carries its reason in one line.
    """
    native.check_ort_version()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors reach the caller as exceptions; warnings would litter stderr
    options.intra_op_num_threads = threads
    if register_library:
        native.register(options)
    try:
        return onnxruntime.InferenceSession(
            os.fspath(model) if not isinstance(model, bytes) else model, options, providers=list(providers)
        )
    except Exception as error:  # onnxruntime raises a dozen pybind classes with no common base of their own
        name = "the model" if isinstance(model, bytes) else f"'{os.fspath(model)}'"
        raise ModelError(f"onnxruntime {onnxruntime.__version__} cannot load {name}: {explain(str(error))}") from error
