"""``intfa-onnx bench``: op, model, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from intfa_onnx.bench import environment, report
from intfa_onnx.bench.limits import find_device
from intfa_onnx.bench.op import Maker, ProblemResult, bench_problem, problems
from intfa_onnx.bench.problem import DATA_KINDS
from intfa_onnx.errors import UnsupportedError

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Measure speed beside the peers.")
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, the table on stderr.")]
ThreadsOption = Annotated[int, typer.Option(min=1, help="CPU threads of each candidate.")]


@app.command("op")
def bench_op(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seqlen: Annotated[list[int] | None, typer.Option(min=1, help="Sequence length; repeat for several.")] = None,
    head_dim: Annotated[list[int] | None, typer.Option(min=8, max=256, help="Head size; repeat for several.")] = None,
    heads: Annotated[int, typer.Option(min=1)] = 8,
    batch: Annotated[int, typer.Option(min=1)] = 1,
    causal: Annotated[bool | None, typer.Option(help="Only causal, or only not; default both.")] = None,
    data: Annotated[str, typer.Option(help=" or ".join(DATA_KINDS))] = "normal",
    threads: ThreadsOption = 1,
    rounds: Annotated[int, typer.Option(min=3)] = 15,
    as_json: Json = False,
) -> None:
    """Time the operator beside its peers on this machine.

    Every candidate is verified against float64 first. Times are medians over interleaved rounds; a ratio that the noise
    exceeds is printed as noise.

    [bold]Examples[/bold]

      intfa-onnx bench op --seqlen 512 --seqlen 1024 --head-dim 64

      intfa-onnx bench op --device cuda --data llm --json > h200.json
    """
    if data not in DATA_KINDS:
        raise UnsupportedError(f"--data {data!r} is unknown (supported: {', '.join(DATA_KINDS)})")
    options: dict[str, Any] = {"threads": threads, "rounds": rounds}
    peers, timer = _peers(device)
    if timer:
        options["timer"] = timer
    header = environment.describe() | {"device": device, "threads": threads, "data": data}
    if header["gpu"] and device == "cuda":
        options["device"] = find_device(header["gpu"]["name"])
    sizes = problems(
        seqlen or [128, 512, 1024, 4096],
        head_dim or [64, 128],
        heads,
        batch,
        (False, True) if causal is None else (causal,),
        data,
    )
    console, results = Console(stderr=as_json), []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=len(sizes))
        for problem in sizes:
            progress.update(task, description=problem.label())
            result = bench_problem(problem, peers, **options)
            console.print(_table(result))
            results.append(result.as_dict())
            progress.advance(task)
    if as_json:
        print(json.dumps({"kind": "op", "header": header, "results": results}, indent=1))


@app.command("model")
def bench_model(
    model_a: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    model_b: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    shapes: Annotated[list[str] | None, typer.Option(help="Input shape, e.g. input_ids:8,128; repeat.")] = None,
    threads: ThreadsOption = 1,
    rounds: Annotated[int, typer.Option(min=3)] = 7,
    as_json: Json = False,
) -> None:
    """Time two models end to end in ONNX Runtime, in alternating rounds, each in a process of its own.

    [bold]Example[/bold]

      intfa-onnx bench model model.onnx model.int8.onnx --shapes input_ids:8,256 --shapes attention_mask:8,256
    """
    from intfa_onnx.bench.model import as_dict, bench_models
    from intfa_onnx.inputs import random_inputs

    sizes = {name: [int(d) for d in dims.split(",")] for name, _, dims in (s.rpartition(":") for s in shapes or [])}
    feed = random_inputs(onnx.load(model_a, load_external_data=False), sizes)
    first, second, faster = bench_models(model_a, model_b, feed, threads=threads, rounds=rounds)
    table = Table("model", "p50 ms", "p95 ms", "p99 ms", "runs/s", "peak MB", "session s")
    for t in (first, second):
        cells = (1e3 * t.p50, 1e3 * t.p95, 1e3 * t.p99, t.per_second, t.peak_memory / 2**20, t.session_start)
        table.add_row(Path(t.model).name, *(f"{x:.2f}" for x in cells))
    Console(stderr=as_json).print(table, f"{model_b.name} is faster by {faster}")
    if as_json:
        header = environment.describe() | {"device": "cpu", "threads": threads}
        shapes_used = {name: list(np.shape(x)) for name, x in feed.items()}
        rows = [as_dict(first), as_dict(second)]
        document = {"kind": "model", "header": header, "inputs": shapes_used, "rows": rows, "faster_by": str(faster)}
        print(json.dumps(document, indent=1))


@app.command("report")
def bench_report(
    results: Annotated[Path, typer.Argument(exists=True, file_okay=False)] = Path("benchmarks/results"),
    output: Annotated[Path, typer.Option("-o", "--output", dir_okay=False)] = Path("docs/performance.md"),
) -> None:
    """Write the performance page, with plots, from recorded results; a figure without a JSON cannot appear in it.

    [bold]Example[/bold]

      intfa-onnx bench report benchmarks/results -o docs/performance.md
    """
    report.write(results, output)


def _peers(device: str) -> tuple[dict[str, Maker], Any]:
    if device == "cpu":
        from intfa_onnx.bench.peers_cpu import CPU_PEERS

        return CPU_PEERS, None
    if device == "cuda":
        from intfa_onnx.bench.peers_cuda import CUDA_PEERS, event_timer

        return CUDA_PEERS, event_timer
    raise UnsupportedError(f"--device {device!r} is unknown (supported: cpu, cuda)")


def _table(result: ProblemResult) -> Table:
    table = Table(
        "candidate", "ms", "spread", "TOPS", "% of limit", "error %", "intfa is faster by", title=result.problem.label()
    )
    for row in result.as_dict()["rows"]:
        if "skipped" in row:
            table.add_row(row["candidate"], "-", "", "", "", "", row["skipped"])
            continue
        limit = f"{row['percent_of_limit']:.0f} ({row['limit']})" if "limit" in row else "-"
        table.add_row(
            row["candidate"],
            f"{1e3 * row['seconds']:.3f}",
            f"{100 * row['spread']:.0f} %",
            f"{row['tops']:.3f}",
            limit,
            f"{100 * row['error']:.2f}",
            row.get("intfa_is_faster_by", ""),
        )
    return table
