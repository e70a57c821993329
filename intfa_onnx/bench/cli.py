"""``intfa-onnx bench``: op, model, scale, plot, report."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from intfa_onnx import model_io
from intfa_onnx.bench import environment, plot, report
from intfa_onnx.bench.candidate import Peer
from intfa_onnx.bench.op import Machine, bench_problems, problems
from intfa_onnx.bench.problem import DATA_KINDS
from intfa_onnx.errors import ModelError, UnsupportedError

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Measure speed beside the peers.")
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, the table on stderr.")]
ThreadsOption = Annotated[int, typer.Option(min=1, help="CPU threads of each candidate.")]


@app.command("op")
def bench_op(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seqlen: Annotated[list[int] | None, typer.Option(min=1, help="Sequence length; repeat for several.")] = None,
    head_dim: Annotated[list[int] | None, typer.Option(min=8, max=256, help="Head size; repeat for several.")] = None,
    heads: Annotated[list[int] | None, typer.Option(min=1, help="Heads; repeat for several. Default 8.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Batch; repeat for several. Default 1.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens in all: gives each length its batch, in place of --batch.")] = 0,
    group: Annotated[int, typer.Option(min=1, help="Heads that share a key head.")] = 1,
    causal: Annotated[bool | None, typer.Option(help="Only causal, or only not; default both.")] = None,
    decode: Annotated[bool, typer.Option("--decode", help="One query over a cache of --seqlen keys.")] = False,
    data: Annotated[str, typer.Option(help=" or ".join(DATA_KINDS))] = "normal",
    threads: ThreadsOption = 1,
    rounds: Annotated[int, typer.Option(min=3)] = 15,
    max_seconds: Annotated[float, typer.Option(help="Skip a peer that would take longer per call.")] = 60.0,
    only: Annotated[list[str] | None, typer.Option(help="Candidate to measure; repeat for several.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", dir_okay=False, help="JSON file, written after every problem.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Time the operator beside its peers on this machine.

    Every candidate is verified against float64 first. Times are medians over interleaved rounds; a ratio that the noise
    exceeds is printed as noise. A peer that is absent, or does not fit in time or memory, is skipped with the reason.

    [bold]Examples[/bold]

      intfa-onnx bench op --seqlen 512 --seqlen 1024 --head-dim 64

      intfa-onnx bench op --device cuda --data llm --output h200.json

      intfa-onnx bench op --decode --heads 32 --group 4 --head-dim 128 --seqlen 16384
    """
    if data not in DATA_KINDS:
        raise UnsupportedError(f"--data {data!r} is unknown (supported: {', '.join(DATA_KINDS)})")
    if decode and causal:
        raise UnsupportedError("--decode with --causal: the last token attends every key; leave --causal out")
    header = environment.describe() | {"device": device, "threads": threads, "data": data}
    peers, machine = _peers(device, threads, header["gpu"])
    if unknown := sorted(set(only or []) - set(peers)):
        raise UnsupportedError(f"--only {unknown[0]!r} is unknown (supported: {', '.join(peers)})")
    peers = {name: peer for name, peer in peers.items() if not only or name in only}
    if machine.limits:
        header["limits"] = asdict(machine.limits)
    sizes = problems(
        seqlen or [128, 512, 1024, 4096],
        head_dim or [64, 128],
        heads or [8],
        batch or [1],
        (False,) if decode else (False, True) if causal is None else (causal,),
        data,
        group,
        decode,
        tokens,
    )
    document: dict[str, Any] = {"kind": "op", "header": header, "results": []}
    console = _console(as_json)
    console.print("\n".join(environment.sentences(header)), highlight=False)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=len(sizes))
        for result in bench_problems(
            sizes, peers, threads=threads, rounds=rounds, machine=machine, max_seconds=max_seconds
        ):
            document["results"].append(result.as_dict())
            console.print(_op_table(document["results"][-1]))
            if header["gpu"]:
                header["gpu"] = environment.gpu()  # the clocks under load, not those before it
            if output:
                _write(output, document)
            progress.advance(task)
    if as_json:
        print(json.dumps(document, indent=1))


@app.command("model")
def bench_model(
    model_a: Annotated[Path, typer.Argument(metavar="A", help="The baseline.")],
    model_b: Annotated[Path, typer.Argument(metavar="B", help="The candidate.")],
    runtime: Annotated[str, typer.Option(help="cpu or cuda (ONNX Runtime), or tensorrt.")] = "cpu",
    inputs: Annotated[Path | None, typer.Option(help=".npz archive with one array per input.")] = None,
    shapes: Annotated[
        list[str] | None, typer.Option(metavar="NAME:DIMS", help="Size of a dynamic input, e.g. input_ids:8x128.")
    ] = None,
    threads: ThreadsOption = 1,
    rounds: Annotated[int, typer.Option(min=3)] = 7,
    runs: Annotated[int, typer.Option(min=1, help="Runs of a model in each round.")] = 20,
    max_error: Annotated[float, typer.Option(help="Relative L2 error above which B is wrong and gets no time.")] = 0.2,
    as_json: Json = False,
) -> None:
    """Time two models end to end in alternating rounds, each in a process of its own, after comparing their outputs.

    [bold]Example[/bold]

      intfa-onnx bench model model.onnx model.int8.onnx --shapes input_ids:8x256 --shapes attention_mask:8x256
    """
    from intfa_onnx.bench.model import bench_models
    from intfa_onnx.inputs import load_inputs, parse_shapes, random_inputs

    feed = load_inputs(inputs) if inputs else random_inputs(model_io.load(model_a), parse_shapes(shapes or []))
    result = bench_models(
        model_a, model_b, feed, runtime=runtime, threads=threads, rounds=rounds, runs=runs, max_error=max_error
    )
    header = environment.describe() | {"device": runtime, "threads": threads}
    header["data"] = f"inputs of {inputs.name}" if inputs else "random inputs"
    sizes = {name: list(np.shape(x)) for name, x in feed.items()}
    document: dict[str, Any] = {
        "kind": "model",
        "header": header,
        "inputs": sizes,
        "rows": [asdict(result.first), asdict(result.second)],
    }
    document |= {"error": result.error, "faster_by": str(result.faster)}
    console = _console(as_json)
    console.print("\n".join(environment.sentences(header)), highlight=False)
    table = Table(*report.MODEL_COLUMNS)
    for row in document["rows"]:
        table.add_row(*report.model_cells(row))
    console.print(table, report.model_sentence(document))
    if as_json:
        print(json.dumps(document, indent=1))


@app.command("scale")
def bench_scale(
    layers: Annotated[list[int] | None, typer.Option(min=1, help="Decoder layers; repeat for several.")] = None,
    hidden: Annotated[int, typer.Option(min=64, help="Width; 1024 makes 500 layers 12 GB.")] = 1024,
    device: Annotated[str, typer.Option(help="Of the operator: cpu or cuda.")] = "cpu",
    only: Annotated[list[str] | None, typer.Option(help="operator, rewriting or start; repeat for several.")] = None,
    as_json: Json = False,
) -> None:
    """Measure how cost grows: the operator's, the rewriter's, and what a process pays once.

    The operator's over sequence length (512 to 131072), heads and batch, beside two peers; what would take more than
    seconds is skipped. The rewriter's over model size: decoders whose weights lie in a sparse external file, which
    takes no disk, and are not read. Once: the load of the library, the start of a session.

    [bold]Example[/bold]

      intfa-onnx bench scale --only rewriting --layers 50 --layers 500
    """
    from intfa_onnx.bench.scale import PARTS, measure_operator, measure_scale

    if unknown := sorted(set(only or []) - set(PARTS)):
        raise UnsupportedError(f"--only {unknown[0]!r} is unknown (supported: {', '.join(PARTS)})")
    parts = only or PARTS
    header = environment.describe() | {"device": device, "threads": 1}
    document: dict[str, Any] = {"kind": "scale", "header": header}
    if "operator" in parts:
        peers, machine = _peers(device, 1, header["gpu"])
        document["operator"] = measure_operator(peers, machine)
    document |= measure_scale(layers or [62, 125, 250, 500], hidden, [p for p in parts if p != "operator"])
    console = _console(as_json)
    console.print("\n".join(environment.sentences(header)), highlight=False)
    for columns, rows in report.scale_tables(document):
        table = Table(*columns)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    if as_json:
        print(json.dumps(document, indent=1))


@app.command("plot")
def bench_plot(
    result: Annotated[Path, typer.Argument(metavar="RESULT", help="What bench op or bench scale printed with --json.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", dir_okay=False, help="Default: RESULT.png.")] = None,
) -> None:
    """Draw a recorded benchmark: TOPS over sequence length, or the rewriter's time over the number of nodes.

    [bold]Example[/bold]

      intfa-onnx bench plot h200.json -o h200.png
    """
    target = output or result.with_suffix(".png")
    try:
        plot.draw(report.read(result), target)
    except OSError as error:
        raise ModelError(f"cannot write '{target}': {error.strerror or error}") from error
    print(target)


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


def _console(as_json: bool) -> Console:
    """Return where tables go; names of models and peers may hold what rich would read as markup."""
    return Console(stderr=as_json, markup=False, emoji=False)


def _peers(device: str, threads: int, gpu: dict[str, str] | None) -> tuple[dict[str, Peer], Machine]:
    if device == "cpu":
        from intfa_onnx.bench.calibrate import calibrate_cpu
        from intfa_onnx.bench.peers_cpu import CPU_PEERS

        return CPU_PEERS, Machine(calibrate_cpu(threads))
    if device == "cuda":
        from intfa_onnx.bench.peers_cuda import CUDA_PEERS, machine

        return CUDA_PEERS, machine(gpu["name"] if gpu else "")
    raise UnsupportedError(f"--device {device!r} is unknown (supported: cpu, cuda)")


def _write(path: Path, document: dict[str, Any]) -> None:
    """Replace the file at once: whoever ends this process finds what it measured."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise ModelError(f"cannot write '{path}': {error.strerror or error}") from error


def _op_table(document: dict[str, Any]) -> Table:
    table = Table(*report.OP_COLUMNS[1:], title=document["label"], caption=report.io_sentence(document))
    for row in document["rows"]:
        table.add_row(*report.op_cells(row))
    return table
