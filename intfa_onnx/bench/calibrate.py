"""The limits of this machine's CPU, measured: no data sheet says what a virtual core gets of clock and memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from intfa_onnx.bench.limits import Device
from intfa_onnx.session import open_session

_SIZE = 512  # operands and result stay in a core's L2
MEMORY_BYTES = 2**27  # beyond the last-level cache


def calibrate_cpu(threads: int) -> Device:
    """Measure the INT8 rate and the rate of reading memory that ``threads`` threads reach; under a second.

    The INT8 rate is the best of ONNX Runtime's ``MatMulInteger`` (u8 x s8, 512 x 512 x 512 for each thread). Its
    kernels use VNNI or its like, so it stands in for the peak, which clock times width would give if either were known
    here. There is no exponential limit.
    """
    return Device("CPU, measured", _int8_ops(threads), _bytes_per_second(threads))


def _int8_ops(threads: int) -> float:
    rng = np.random.default_rng(0)
    rows = _SIZE * threads
    a = rng.integers(0, 256, (rows, _SIZE), np.uint8)
    b = numpy_helper.from_array(rng.integers(-127, 128, (_SIZE, _SIZE), np.int8), "B")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["A", "B"], ["Y"])],
        "calibration",
        [helper.make_tensor_value_info("A", TensorProto.UINT8, a.shape)],
        [helper.make_tensor_value_info("Y", TensorProto.INT32, [rows, _SIZE])],
        [b],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = open_session(model.SerializeToString(), threads=threads, register_library=False)
    # many repeats: a new thread may share a core with another for a while
    return 2 * rows * _SIZE**2 / _least_seconds(lambda: session.run(None, {"A": a}), repeats=600)


def _bytes_per_second(threads: int) -> float:
    """Return the rate of reading, nearly all that attention does to memory; numpy lets go of the interpreter."""
    sources = [np.ones(MEMORY_BYTES // threads // 8, np.uint64) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        seconds = _least_seconds(lambda: list(pool.map(np.bitwise_or.reduce, sources)), repeats=16)
    return sum(source.nbytes for source in sources) / seconds


def _least_seconds(call: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
