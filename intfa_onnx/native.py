"""The native libraries: where they are, and how ONNX Runtime gets to know the operator."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from intfa_onnx.errors import UnsupportedError

if TYPE_CHECKING:
    import onnxruntime

MIN_ORT_VERSION = (1, 18)  # the API that the library is built against
Host = Literal["ort", "trt"]


def get_library_path(host: Host = "ort") -> Path:
    """Return the absolute path of the native library for a host runtime.

    Args:
        host: ``ort`` is ONNX Runtime's custom-op library, which also carries the C ABI (``intfa/c_api.h``); ``trt`` is
            TensorRT's plugin library.
    Raises:
        UnsupportedError: there is no such host, or this installation was made without its library.
    """
    if host not in get_args(Host):
        raise UnsupportedError(f"no native library for host {host!r} (supported: {', '.join(get_args(Host))})")
    name = f"libintfa_{host}.so"
    folders = [
        Path(folder) / "lib" for folder in sys.modules["intfa_onnx"].__path__
    ]  # two of them in an editable install
    for folder in folders:
        if (folder / name).is_file():
            return (folder / name).resolve()
    raise UnsupportedError(
        f"{name} is not built: looked in {', '.join(map(str, folders))}. Install the package (pip install .), or in a "
        "checkout: cmake --preset release && cmake --build --preset release --target install"
    )


def register(session_options: onnxruntime.SessionOptions) -> None:
    """Make ``IntFlashAttention`` known to the sessions made with these options; again and again does no harm.

    Args:
        session_options: ``onnxruntime.SessionOptions``; call this before ``InferenceSession`` is made.
    Raises:
        UnsupportedError: ONNX Runtime is missing, too old or refuses the library, or the library is not built.
    """
    check_ort_version()
    path = get_library_path("ort")
    try:
        session_options.register_custom_ops_library(str(path))
    except Exception as error:  # onnxruntime's pybind classes have no common base of their own
        raise UnsupportedError(f"onnxruntime refuses {path}: {error}") from error


def check_ort_version() -> None:
    """Check that ONNX Runtime is there and new enough for the library.

    Raises:
        UnsupportedError: it is missing, or older than 1.18.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UnsupportedError(
            f"onnxruntime cannot be imported ({error}). Install it: pip install 'intfa-onnx[ort]'"
        ) from error
    found = onnxruntime.__version__
    version = tuple(int(number) for number in re.findall(r"\d+", found)[:2])
    if version < MIN_ORT_VERSION:
        supported = ".".join(map(str, MIN_ORT_VERSION))
        raise UnsupportedError(f"onnxruntime {found} is too old (supported: {supported} or newer); update it")
