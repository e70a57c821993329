"""INT8 FlashAttention for ONNX models."""

from intfa_onnx.errors import IntfaError, ModelError, UnsupportedError
from intfa_onnx.native import get_library_path, register
from intfa_onnx.report import AttentionReport
from intfa_onnx.rewrite import RewriteResult, rewrite
from intfa_onnx.trt_plugin import load_trt_plugin

__version__ = "0.1.0"

__all__ = [
    "AttentionReport",
    "IntfaError",
    "ModelError",
    "RewriteResult",
    "UnsupportedError",
    "get_library_path",
    "load_trt_plugin",
    "register",
    "rewrite",
]
