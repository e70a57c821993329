"""ONNX Runtime sessions with our library registered, and ONNX Runtime's errors in words that say what to do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from intfa_onnx import native
from intfa_onnx.errors import ModelError, UnsupportedError
from intfa_onnx.op_schema import DOMAIN, OP_TYPE, TRT_EP_DOMAIN

if TYPE_CHECKING:
    import onnxruntime

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_RECORD_PLACEMENT = "session.record_ep_graph_assignment_info"

# What ONNX Runtime says -> what it means and what helps. The first text found in the error wins.
_EXPLANATIONS = (
    (
        f"{DOMAIN}:{OP_TYPE}(-1) is not a registered function/op",
        "the model is rewritten, but this session does not know the operator; "
        "call intfa_onnx.register(session_options) before the session is made, or rewrite with --portable",
    ),
    (
        f"{TRT_EP_DOMAIN}:{OP_TYPE}(-1) is not a registered function/op",
        "the model is for ONNX Runtime's TensorRT provider: give it that one, with our library in "
        "trt_extra_plugin_lib_paths, or rewrite the original with --target ort",
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
    providers: Sequence[str | tuple[str, dict[str, Any]]] = (CPU,),
    threads: int = 0,
    register_library: bool = True,
) -> onnxruntime.InferenceSession:
    """Open an ONNX Runtime session that knows ``IntFlashAttention``, and runs it where that is wanted.

    ONNX Runtime quietly falls back to the CPU where a provider or a kernel is missing; this function does not.

    Args:
        model: path of a model, or a serialized model.
        providers: ONNX Runtime execution providers, bare or with their options, in order of preference; the first has
            to take every ``IntFlashAttention``.
        threads: threads within one operator; 0 lets ONNX Runtime choose.
        register_library: without it, a rewritten model runs only if it was made ``portable``.
    Raises:
        UnsupportedError: ONNX Runtime is missing or too old, the native library is missing, or the first provider is
            missing, does not start or does not get the operator.
        ModelError: ONNX Runtime refuses the model; carries its reason in one line.
    """
    native.check_ort_version()
    import onnxruntime

    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if wanted not in onnxruntime.get_available_providers():
        raise UnsupportedError(
            f"onnxruntime {onnxruntime.__version__} has no {wanted} (it has "
            f"{', '.join(onnxruntime.get_available_providers())}). For CUDA install onnxruntime-gpu in its place: "
            "pip uninstall onnxruntime; pip install 'intfa-onnx[ort-gpu]'"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors reach the caller as exceptions, which need no second text on stderr
    options.intra_op_num_threads = threads
    if register_library:
        native.register(options)
    if wanted != CPU:
        options.add_session_config_entry(_RECORD_PLACEMENT, "1")
    try:
        session = onnxruntime.InferenceSession(
            os.fspath(model) if not isinstance(model, bytes) else model, options, providers=list(providers)
        )
    except Exception as error:  # onnxruntime raises a dozen pybind classes with no common base of their own
        name = "the model" if isinstance(model, bytes) else f"'{os.fspath(model)}'"
        raise ModelError(f"onnxruntime {onnxruntime.__version__} cannot load {name}: {explain(str(error))}") from error
    if wanted != CPU:
        check_placement(session, wanted)
    return session


def check_placement(session: onnxruntime.InferenceSession, provider: str) -> None:
    """Check that every ``IntFlashAttention`` of a session runs on one provider.

    Args:
        session: made with the config entry ``session.record_ep_graph_assignment_info=1``; :func:`open_session` sets it
            for every provider but the CPU.
        provider: e.g. ``CUDAExecutionProvider``.
    Raises:
        UnsupportedError: the provider did not start, a node runs elsewhere (the first is named), or ONNX Runtime does
            not say where nodes run.
    """
    if provider not in session.get_providers():
        raise UnsupportedError(
            f"{provider} did not start, and onnxruntime fell back to {', '.join(session.get_providers())}: the "
            "NVIDIA driver, CUDA or cuDNN is missing. `intfa-onnx doctor` shows the driver; for the libraries call "
            "onnxruntime.preload_dlls() first, or pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
    try:
        subgraphs = session.get_provider_graph_assignment_info()
    except Exception as error:  # onnxruntime's own classes, or AttributeError before 1.24
        raise UnsupportedError(
            f"this onnxruntime session does not say where nodes run ({error}); "
            f"that needs onnxruntime 1.24 or newer and the config entry {_RECORD_PLACEMENT}=1"
        ) from error
    ours = [
        (node.name, subgraph.ep_name)
        for subgraph in subgraphs
        for node in subgraph.get_nodes()
        if (node.domain, node.op_type) == (DOMAIN, OP_TYPE)
    ]
    elsewhere = [(name, found) for name, found in ours if found != provider]
    if elsewhere:
        name, found = elsewhere[0]
        raise UnsupportedError(
            f"{len(elsewhere)} of {len(ours)} {OP_TYPE} nodes do not run on {provider}: '{name}' is on {found}. "
            "A library built without CUDA has no kernel for it: `intfa-onnx doctor` tells how it was built"
        )
