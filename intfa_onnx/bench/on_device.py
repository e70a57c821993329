"""What the candidates on a GPU share: one stream, float16 tensors on it, and a timer by device events."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from intfa_onnx.bench.candidate import Candidate, Inputs
from intfa_onnx.errors import UnsupportedError

if TYPE_CHECKING:
    import torch


def event_timer(call: Callable[[], object], repeats: int) -> float:
    """Return mean seconds per call by device events around all of them."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def tensors(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return Q, K, V as float16 on the GPU.

    Raises:
        UnsupportedError: torch is missing or sees no GPU.
    """
    try:
        import torch
    except ImportError as error:
        raise UnsupportedError(f"torch cannot be imported ({error})") from error
    if not torch.cuda.is_available():
        raise UnsupportedError("torch sees no CUDA device")
    stream()
    q, k, v = (torch.from_numpy(x).half().cuda() for x in inputs)
    return q, k, v


@cache
def stream() -> Any:
    """Return the stream of all candidates, made current: ONNX Runtime takes none that is the default one (null)."""
    import torch

    own = torch.cuda.Stream()
    torch.cuda.set_stream(own)
    return own


def candidate(call: Callable[[], torch.Tensor]) -> Candidate:
    """Return a candidate whose call enqueues on the stream and returns [batch, heads, seqlen, head_dim]."""
    last: list[torch.Tensor] = []

    def run() -> None:
        last[:] = [call()]

    return Candidate(run, lambda: last[0].float().cpu().numpy())
