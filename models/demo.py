"""Command one of the README: a real model, rewritten and run beside its original on real sentences.

Exports all-MiniLM-L6-v2, rewrites it with both schemes, runs all three in ONNX Runtime on ``sentences.txt`` and prints
what the rewrite changed. Exit code 1 if the tile scheme misses a limit below.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import textwrap
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import minilm
import numpy as np
import onnxruntime
from rich.console import Console
from rich.table import Table

from intfa_onnx.cli import main as intfa_onnx_command
from intfa_onnx.session import open_session

SENTENCES = Path(__file__).with_name("sentences.txt")
SCHEMES = ("tile", "paper")
BATCH = 32

# Limits for the tile scheme. An emulation of its arithmetic on 400 other sentences gave 0.9996 and 0.99993.
WORST_COSINE, MEAN_COSINE = 0.9995, 0.9999


@dataclass(frozen=True)
class Quality:
    """How well a rewritten model keeps the original's sentence embeddings."""

    found: int
    replaced: int
    worst_cosine: float  # between a sentence's embeddings by both models
    mean_cosine: float
    worst_sentence: str
    same_nearest: float  # share of sentences whose nearest other sentence stays the same
    spearman: float  # rank correlation of the similarities of all pairs of sentences
    partner_nearest: float  # share of sentences whose nearest other sentence is the one it is written to resemble

    @property
    def within_limits(self) -> bool:
        """Whether all attentions were replaced and both cosine limits hold."""
        complete = self.found == self.replaced == minilm.NUM_ATTENTIONS
        return complete and self.worst_cosine >= WORST_COSINE and self.mean_cosine >= MEAN_COSINE


def read_sentences() -> list[str]:
    """Return the sentences; numbers 2k and 2k+1 resemble each other."""
    return [line for line in SENTENCES.read_text(encoding="utf-8").splitlines() if line]


def rewrite(model: Path, scheme: str) -> tuple[Path, int, int]:
    """Run ``intfa-onnx rewrite``; return the new model's path and how many attentions were found and replaced."""
    output = model.with_name(f"{model.stem}.{scheme}.onnx")
    report = output.with_suffix(".json")
    arguments = ["rewrite", str(model), "-o", str(output), "--scheme", scheme, "--report", str(report), "--force"]
    with contextlib.redirect_stdout(sys.stderr):
        print("$ intfa-onnx", *(os.path.relpath(a) if os.path.isabs(a) else a for a in arguments))
        if intfa_onnx_command(arguments) != 0:
            sys.exit("the rewrite failed")
    attentions = json.loads(report.read_text())["attentions"]
    return output, len(attentions), sum(a["decision"] == "replaced" for a in attentions)


def embed(session: onnxruntime.InferenceSession, batches: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Return unit embeddings [sentences, 384]."""
    return np.concatenate([minilm.pool(session.run(None, batch)[0], batch["attention_mask"]) for batch in batches])


def median_seconds(
    sessions: dict[str, onnxruntime.InferenceSession], batches: list[dict[str, np.ndarray]], repeats: int
) -> dict[str, float]:
    """Return each session's median time for all batches; the sessions take turns, so that a slow spell hits all."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(repeats):
        for name, session in sessions.items():
            start = time.perf_counter()
            for batch in batches:
                session.run(None, batch)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def nearest(embeddings: np.ndarray) -> np.ndarray:
    """Return for each sentence the number of the most similar other one."""
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -np.inf)
    return similarity.argmax(axis=1)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Return the rank correlation of the similarities of all pairs of sentences under two embeddings."""
    upper = np.triu_indices(len(a), k=1)
    ranks = [np.argsort(np.argsort((e @ e.T)[upper])) for e in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def judge(sentences: list[str], original: np.ndarray, rewritten: np.ndarray, found: int, replaced: int) -> Quality:
    """Compare the embeddings of a rewritten model with the original's."""
    cosine = (original.astype(np.float64) * rewritten).sum(axis=1)
    partner = np.arange(len(sentences)) ^ 1
    return Quality(
        found=found,
        replaced=replaced,
        worst_cosine=float(cosine.min()),
        mean_cosine=float(cosine.mean()),
        worst_sentence=sentences[int(cosine.argmin())],
        same_nearest=float((nearest(original) == nearest(rewritten)).mean()),
        spearman=spearman(original, rewritten),
        partner_nearest=float((nearest(rewritten) == partner).mean()),
    )


def build_table(qualities: dict[str, Quality], seconds: dict[str, float], baseline_partner: float) -> Table:
    """Lay the result out: one column per model."""
    table = Table("", "original", *SCHEMES, title="all-MiniLM-L6-v2, FP32 beside INT8 FlashAttention")

    def row(label: str, first: str, text: str) -> None:
        table.add_row(label, first, *(text.format(**asdict(qualities[s])) for s in SCHEMES))

    row("attentions replaced / found", "", "{replaced} / {found}")
    row("cosine of embeddings, worst", "1", "{worst_cosine:.6f}")
    row("cosine of embeddings, mean", "1", "{mean_cosine:.6f}")
    row("nearest sentence unchanged", "100.0%", "{same_nearest:.1%}")
    row("Spearman of all similarities", "1", "{spearman:.6f}")
    row("nearest is the related one", f"{baseline_partner:.1%}", "{partner_nearest:.1%}")
    base = seconds["original"]
    table.add_row("time, all sentences", f"{base:.3f} s", *(f"{seconds[s]:.3f} s" for s in SCHEMES))
    table.add_row("speed", "1", *(f"{base / seconds[s]:.2f} x" for s in SCHEMES))
    return table


def main() -> int:
    """Run the demo; return 1 if the tile scheme misses a limit."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON on stdout and nothing else")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs over all sentences")
    parser.add_argument("--threads", type=int, default=0, help="threads within one operator; 0: ONNX Runtime's choice")
    arguments = parser.parse_args()

    sentences = read_sentences()
    batches = [minilm.tokenize(sentences[i : i + BATCH]) for i in range(0, len(sentences), BATCH)]
    print("exporting all-MiniLM-L6-v2 ...", file=sys.stderr)
    model = minilm.export()
    rewritten = {scheme: rewrite(model, scheme) for scheme in SCHEMES}
    paths = {"original": model, **{scheme: path for scheme, (path, _, _) in rewritten.items()}}
    sessions = {name: open_session(path, threads=arguments.threads) for name, path in paths.items()}
    embeddings = {name: embed(session, batches) for name, session in sessions.items()}
    seconds = median_seconds(sessions, batches, arguments.repeats)
    qualities = {
        scheme: judge(sentences, embeddings["original"], embeddings[scheme], found, replaced)
        for scheme, (_, found, replaced) in rewritten.items()
    }
    passed = qualities["tile"].within_limits
    lengths = np.concatenate([batch["attention_mask"].sum(axis=1) for batch in batches])
    if arguments.json:
        result = {
            "passed": passed,
            "sentences": len(sentences),
            "tokens": [int(lengths.min()), int(lengths.max())],
            "onnxruntime": onnxruntime.__version__,
            "seconds": seconds,
            **{scheme: asdict(quality) for scheme, quality in qualities.items()},
        }
        print(json.dumps(result, indent=2))
    else:
        partner = float((nearest(embeddings["original"]) == np.arange(len(sentences)) ^ 1).mean())
        console = Console()
        console.print(build_table(qualities, seconds, partner))
        console.print(
            f"{len(sentences)} sentences in {len(sentences) // 2} related pairs, {lengths.min()} to {lengths.max()} "
            f"tokens, padded batches of {BATCH}; onnxruntime {onnxruntime.__version__}, "
            f"median of {arguments.repeats} runs."
        )
        worst = textwrap.shorten(qualities["tile"].worst_sentence, 60)
        console.print(f"worst, tile scheme: {worst}", markup=False, highlight=False)
        limits = f"6/6 replaced, worst cosine >= {WORST_COSINE}, mean >= {MEAN_COSINE}"
        console.print(f"tile scheme {'within' if passed else 'MISSES'} its limits: {limits}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
