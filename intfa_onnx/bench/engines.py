"""Host runtimes that run a whole model: ONNX Runtime on CPU and CUDA, TensorRT."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import numpy as np

from intfa_onnx.errors import ModelError, UnsupportedError
from intfa_onnx.session import open_session
from intfa_onnx.trt_plugin import import_tensorrt, load_trt_plugin

Feed = Mapping[str, np.ndarray]
Run = Callable[[Feed], dict[str, np.ndarray]]  # from host memory to host memory


def open_ort_cpu(model: str, feed: Feed, threads: int) -> Run:
    """Open a model in ONNX Runtime on the CPU."""
    return _ort(model, threads, ("CPUExecutionProvider",))


def open_ort_cuda(model: str, feed: Feed, threads: int) -> Run:
    """Open a model in ONNX Runtime on CUDA; ours runs there, other nodes without a CUDA kernel run on the CPU."""
    return _ort(model, threads, ("CUDAExecutionProvider", "CPUExecutionProvider"))


def open_tensorrt(model: str, feed: Feed, threads: int) -> Run:
    """Build an engine for the shapes of ``feed`` and load our plugin, if it is built; types are the model's own."""
    import_tensorrt()
    with contextlib.suppress(UnsupportedError):  # not built: the parser says so of a model that needs it
        load_trt_plugin()
    try:
        from polygraphy.backend.trt import (
            CreateConfig,
            EngineFromNetwork,
            NetworkFromOnnxPath,
            Profile,
            TrtRunner,
        )
        from polygraphy.logger import G_LOGGER
    except ImportError as error:
        raise UnsupportedError(
            f"polygraphy cannot be imported ({error}): pip install 'intfa-onnx[polygraphy]'"
        ) from error
    profile = Profile()
    for name, array in feed.items():
        profile.add(name, min=array.shape, opt=array.shape, max=array.shape)
    network = NetworkFromOnnxPath(model, strongly_typed=True)
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        runner = TrtRunner(EngineFromNetwork(network, CreateConfig(profiles=[profile])))
        try:
            runner.activate()
        except Exception as error:  # PolygraphyException, and whatever TensorRT's bindings raise
            raise ModelError(f"TensorRT cannot build '{model}': {' '.join(str(error).split())}") from error
    return lambda arrays: dict(runner.infer(dict(arrays)))


ENGINES: dict[str, Callable[[str, Feed, int], Run]] = {
    "cpu": open_ort_cpu,
    "cuda": open_ort_cuda,
    "tensorrt": open_tensorrt,
}


def _ort(model: str, threads: int, providers: tuple[str, ...]) -> Run:
    session = open_session(model, threads=threads, providers=providers)
    names = [output.name for output in session.get_outputs()]
    return lambda arrays: dict(zip(names, session.run(names, dict(arrays)), strict=True))
