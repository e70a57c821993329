"""TensorRT in this process: our plugin made known to it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from intfa_onnx import native, op_schema
from intfa_onnx.errors import UnsupportedError

TENSORRT_MAJORS = (10, 11)  # whose plugin interface the library was written for


def import_tensorrt() -> ModuleType:
    """Import TensorRT's Python package.

    Raises:
        UnsupportedError: it cannot be imported, or is of a version that the plugin was not written for.
    """
    try:
        import tensorrt
    except ImportError as error:
        raise UnsupportedError(
            f"TensorRT cannot be imported ({error}). Install it: pip install 'intfa-onnx[trt]'"
        ) from error
    if int(tensorrt.__version__.split(".")[0]) not in TENSORRT_MAJORS:
        supported = " and ".join(map(str, TENSORRT_MAJORS))
        raise UnsupportedError(f"TensorRT {tensorrt.__version__} is unsupported (supported: {supported}). Install one")
    return tensorrt


def load_trt_plugin() -> Path:
    """Make ``IntFlashAttention`` known to TensorRT's builders, parsers and runtimes; again and again does no harm.

    Returns:
        The library's path, e.g. for ``IBuilderConfig.plugins_to_serialize``.
    Raises:
        UnsupportedError: TensorRT is missing, of an unsupported version or refuses the library, or that is not built.
    """
    tensorrt = import_tensorrt()
    path = native.get_library_path("trt")
    registry = tensorrt.get_plugin_registry()
    known = any(
        (creator.name, creator.plugin_namespace) == (op_schema.OP_TYPE, op_schema.DOMAIN)
        for creator in registry.all_creators
    )
    if not known and registry.load_library(str(path)) is None:
        raise UnsupportedError(
            f"TensorRT {tensorrt.__version__} does not load {path}. See what it logs, and what `intfa-onnx doctor` says"
        )
    return path
