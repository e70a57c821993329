"""What a benchmark verifies and times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from intfa_onnx.bench.problem import Problem

Inputs = tuple[np.ndarray, np.ndarray, np.ndarray]  # Q, K, V, float32 [batch, heads, seqlen, head_dim]


@dataclass(frozen=True)
class Candidate:
    """One way to compute the problem, ready to run.

    Attributes:
        run: one call, complete when it returns (CPU) or enqueued on the current stream (GPU).
        output: the last call's result, float32 [batch, heads, seqlen, head_dim].
    """

    run: Callable[[], object]
    output: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Peer:
    """A maker of candidates.

    Attributes:
        make: takes problem, inputs and CPU threads; raises UnsupportedError with the reason if it cannot run here.
        scores: how many float32 arrays of the size of the scores it holds at once, 0 if it never has them whole.
        input_bytes: of an element of Q, K and V, where that is not the machine's.
    """

    make: Callable[[Problem, Inputs, int], Candidate]
    scores: int = 0
    input_bytes: int = 0

    def score_bytes(self, problem: Problem) -> int:
        """Return the bytes of those arrays."""
        return self.scores * 4 * problem.batch * problem.num_heads * problem.seqlen_q * problem.seqlen
