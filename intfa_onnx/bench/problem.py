"""One attention problem to measure: its size, its data, its float64 truth on sampled rows, and its operation count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DATA_KINDS = ("normal", "llm")


@dataclass(frozen=True)
class Problem:
    """Self-attention of ``seqlen`` tokens; layouts are [batch, heads, seqlen, head_dim] throughout.

    With ``decode`` it is a decoder's step: one query attends all ``seqlen`` keys, which lie in its cache.
    """

    batch: int
    num_heads: int
    kv_num_heads: int
    seqlen: int
    head_dim: int
    causal: bool
    data: str = "normal"
    decode: bool = False

    @property
    def seqlen_q(self) -> int:
        """Queries."""
        return 1 if self.decode else self.seqlen

    @property
    def operations(self) -> int:
        """Multiplications and additions of both products: ``4*B*H*Sq*S*D``, and half of that where causal."""
        scores = self.batch * self.num_heads * self.seqlen_q * self.seqlen
        return 4 * scores * self.head_dim // (2 if self.causal else 1)

    def label(self) -> str:
        """Return a short name, e.g. ``B1 H8 S1024 D64 causal``."""
        heads = f"H{self.num_heads}" + (f"/{self.kv_num_heads}" if self.kv_num_heads != self.num_heads else "")
        kind = " causal" if self.causal else " decode" if self.decode else ""
        return f"B{self.batch} {heads} S{self.seqlen} D{self.head_dim}{kind}"

    def inputs(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw Q, K, V in float32.

        ``normal`` is N(0, 1). ``llm`` adds what real layers show: a few K channels with a large token-independent mean,
        V with a non-zero mean and unequal channel scales, and peaked scores.
        """
        rng = np.random.default_rng(seed)
        q_shape = (self.batch, self.num_heads, self.seqlen_q, self.head_dim)
        kv_shape = (self.batch, self.kv_num_heads, self.seqlen, self.head_dim)
        q, k, v = (rng.standard_normal(shape, dtype=np.float32) for shape in (q_shape, kv_shape, kv_shape))
        if self.data == "llm":
            channels = rng.permutation(self.head_dim)[: max(2, self.head_dim // 20)]
            k[..., channels] += rng.uniform(8, 20, channels.size).astype(np.float32)
            scale = np.exp(0.5 * rng.standard_normal((1, self.kv_num_heads, 1, self.head_dim), dtype=np.float32))
            q, v = 2 * q, (v + np.float32(0.3)) * scale
        return q, k, v

    def sampled_truth(
        self, q: np.ndarray, k: np.ndarray, v: np.ndarray, rows: int = 64
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return up to ``rows`` query positions and their float64 outputs [batch, heads, rows, head_dim]."""
        positions = np.unique(np.linspace(0, self.seqlen_q - 1, rows).astype(np.int64))
        group = self.num_heads // self.kv_num_heads
        truth = np.empty((self.batch, self.num_heads, len(positions), self.head_dim))
        for b, h in np.ndindex(self.batch, self.num_heads):  # one head at a time: all at once would not fit at 128k
            scores = q[b, h, positions].astype(np.float64) @ k[b, h // group].T / np.sqrt(self.head_dim)
            if self.causal:
                scores[np.arange(self.seqlen) > positions[:, None]] = -np.inf
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            truth[b, h] = weights @ v[b, h // group] / weights.sum(axis=-1, keepdims=True)
        return positions, truth
