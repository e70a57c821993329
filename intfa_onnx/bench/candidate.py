"""What a benchmark verifies and times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Inputs = tuple[np.ndarray, np.ndarray, np.ndarray]  # Q, K, V, float32 [batch, heads, seqlen, head_dim]


@dataclass(frozen=True)
class Candidate:
    """One way to compute the problem.

    Attributes:
        run: one call, complete when it returns (CPU) or enqueued on the current stream (GPU).
        output: the last call's result, float32 [batch, heads, seqlen, head_dim].
    """

    run: Callable[[], object]
    output: Callable[[], np.ndarray]
