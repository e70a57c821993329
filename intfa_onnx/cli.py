"""The command line. Results go to stdout, all else to stderr; an error is one line and exit code 2."""

from __future__ import annotations

import io
import json
import shlex
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

import intfa_onnx
from intfa_onnx import model_io
from intfa_onnx.bench.cli import app as bench_app
from intfa_onnx.errors import IntfaError, ModelError, UnsupportedError
from intfa_onnx.native import Host

if TYPE_CHECKING:
    from intfa_onnx.compare import OutputMetrics

app = typer.Typer(
    name="intfa-onnx",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(bench_app, name="bench")
# Names of nodes and paths may hold what rich would read as markup, e.g. 'model[mlp]/Softmax'.
out = Console(markup=False, emoji=False)
err = Console(stderr=True)

_INTERRUPTED = 130  # what newer versions of typer make of KeyboardInterrupt, and say nothing

Precision = Literal["int8", "int8_qk"]
Scheme = Literal["tile", "paper"]
Target = Literal["ort", "trt", "ort-trt-ep"]
Runner = Literal["ort-cpu", "ort-cuda", "trt", "reference"]

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX model; external data stays where it is.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON on stdout and nothing else; nothing at all where an error ends it.")
]


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 a check failed, 2 an error."""
    arguments = sys.argv[1:] if argv is None else argv
    if argv is None:  # the process is ours: whoever ends it finds nothing half-written, as after ctrl-C
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path may hold what the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = int(app(arguments, prog_name="intfa-onnx", standalone_mode=False) or 0)
        return _fail("interrupted", False) if code == _INTERRUPTED else code
    except IntfaError as error:
        return _fail(str(error), "--debug" in arguments)
    except KeyboardInterrupt:
        return _fail("interrupted", False)
    except BrokenPipeError:  # the reader of our output has gone, e.g. `| head`
        sys.stderr.close()
        return 1
    except MemoryError as error:
        return _fail(f"not enough memory: {error}", "--debug" in arguments)
    except OSError as error:  # a file that may not be read, no space for what is printed
        return _fail(
            f"{repr(error.filename) if error.filename else 'output'}: {error.strerror}", "--debug" in arguments
        )
    except Exception as error:  # typer's own classes, known by name since they moved between its versions
        kind = type(error).__name__
        if kind == "NoArgsIsHelpError":  # the help is printed
            return 2
        if kind == "Abort":
            return _fail("interrupted", False)
        if hasattr(error, "format_message"):
            return _fail(f"{error.format_message()} (see intfa-onnx --help)", False)
        return _fail(f"internal error, please report it: {kind}: {error}", "--debug" in arguments)


def _fail(message: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"intfa-onnx: {' '.join(message.split())}", file=sys.stderr)
    return 2


@contextmanager
def _working(text: str, quiet: bool) -> Iterator[None]:
    """Show on stderr, while it lasts and if that is a terminal, what is being done."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    if quiet or not err.is_terminal:
        yield
        return
    with Progress(*columns, console=err, transient=True) as progress:
        progress.add_task(text, total=None)
        yield


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _version(wanted: bool) -> None:
    if wanted:
        print(intfa_onnx.__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """INT8 FlashAttention for ONNX models."""


@app.command()
def rewrite(
    model: ModelPath,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the rewritten model.")],
    precision: Annotated[
        Precision, typer.Option(help="int8: both products; int8_qk: P.V in 16-bit floating point.")
    ] = "int8",
    scheme: Annotated[
        Scheme, typer.Option(help="tile: P quantized per tile; paper: INT-FlashAttention as published.")
    ] = "tile",
    target: Annotated[
        Target, typer.Option(help="trt: for TensorRT; ort-trt-ep: for ONNX Runtime's TensorRT provider.")
    ] = "ort",
    only: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Only these attentions; may be repeated.")
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Not these attentions; may be repeated.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write what became of each attention, as JSON.")] = None,
    portable: Annotated[
        bool, typer.Option("--portable", help="Add the operator's float meaning, for ONNX Runtime without our library.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
    as_json: Json = False,
) -> None:
    """Replace the attentions of a model by intfa::IntFlashAttention.

    [bold]Examples[/bold]

    intfa-onnx rewrite model.onnx -o model.int8.onnx

    intfa-onnx rewrite model.onnx -o out.onnx --precision int8_qk --skip '/layer.0/*' --report out.json

    intfa-onnx rewrite model.onnx -o model.trt.onnx --target trt
    """
    if report:
        model_io.check_target(report, force)
        if report.resolve() in (model.resolve(), output.resolve()):
            raise ModelError(
                f"--report '{report}' is a model of this command, and would overwrite it. Give another name"
            )
    with _working(f"rewriting {model}", as_json):
        result = intfa_onnx.rewrite(
            model,
            precision=precision,
            scheme=scheme,
            only=only or (),
            skip=skip or (),
            portable=portable,
            target=target,
        )
        result.save(output, force=force)
    if report:
        try:
            model_io.write_atomically(report, (result.to_json() + "\n").encode())
        except OSError as error:
            raise ModelError(f"'{output}' is written, its report '{report}' is not: {error.strerror}") from error
    if as_json:
        _print_json({**result.to_dict(), "output": str(output)})
        return
    if result.attentions:
        out.print(_attention_table(result, "decision"))
    print(f"{result.summary()}; wrote {output}")
    for pattern in result.unmatched:
        print(f"intfa-onnx: '{pattern}' of --only or --skip names no attention of this model", file=sys.stderr)


@app.command()
def inspect(
    model: ModelPath,
    dump: Annotated[
        str | None, typer.Option(metavar="NODE", help="Cut this attention out of the model, with random weights.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where --dump writes the part.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing part.")] = False,
    as_json: Json = False,
) -> None:
    r"""List the attentions of a model and what `rewrite` would do with each; change nothing.

    With --dump, write the nodes around one of them as a model of its own, which can be sent to others: it runs, and is
    found or rejected like the whole, but has random numbers for weights. Names of nodes and tensors stay.

    [bold]Examples[/bold]

    intfa-onnx inspect model.onnx

    intfa-onnx inspect model.onnx --json | jq '.attentions\[] | select(.decision == "rejected")'

    intfa-onnx inspect model.onnx --dump /layer.0/Softmax -o attention.onnx
    """
    if dump is not None or output is not None:
        _dump(model, dump, output, force, as_json)
        return
    with _working(f"reading {model}", as_json):
        result = intfa_onnx.rewrite(model)
    if as_json:
        _print_json(result.to_dict())
        return
    if result.attentions:
        out.print(_attention_table(result, "rewrite would say"))
    print(result.summary())
    if result.portable:
        print("portable: the file carries the operator's float meaning, and runs without our library as well")
    rejected = [a for a in result.attentions if a.decision == "rejected"]
    if rejected:
        print("\nIf one of the rejected is an attention, send us the few nodes around it, with random weights:")
    for a in rejected:
        print(shlex.join(["intfa-onnx", "inspect", str(model), "--dump", a.label(), "-o", "attention.onnx"]))


def _dump(model: Path, node: str | None, output: Path | None, force: bool, as_json: bool) -> None:
    from intfa_onnx.dump import dump

    if node is None or output is None:
        raise UnsupportedError("--dump NODE and --output FILE belong together: give both")
    with _working(f"cutting {node} out of {model}", as_json):
        part = dump(model, node)
        model_io.save(model_io.from_proto(part.model), output, force=force)
    if as_json:
        _print_json({"output": str(output), "attention": part.report.to_dict(), "problem": part.problem})
        return
    print(f"wrote {output}, {len(part.model.graph.node)} nodes; read like the whole model:")
    print(f"{part.report.decision}{': ' if part.report.reason else ''}{part.report.reason}")
    if part.problem:
        print(f"it does not run as it is: {part.problem}", file=sys.stderr)


def _attention_table(result: intfa_onnx.RewriteResult, decision: str) -> Table:
    table = Table(
        Column("node", overflow="fold"), "heads", "size", "pattern", decision, Column("reason", overflow="fold")
    )
    for a in result.attentions:
        heads = "" if a.num_heads is None else f"{a.num_heads}/{a.kv_num_heads or a.num_heads}"
        size = "" if a.head_dim is None else str(a.head_dim)
        table.add_row(a.label(), heads, size, a.pattern, a.decision, a.reason)
    return table


@app.command()
def compare(
    model_a: Annotated[Path, typer.Argument(metavar="A", help="The baseline.")],
    model_b: Annotated[Path, typer.Argument(metavar="B", help="The candidate.")],
    inputs: Annotated[Path | None, typer.Option(help=".npz archive with one array per input.")] = None,
    shapes: Annotated[
        list[str] | None, typer.Option(metavar="NAME:DIMS", help="Size of a dynamic input, e.g. input_ids:8x128.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the inputs that are made up.")] = 0,
    runner_a: Annotated[Runner, typer.Option(help="What runs A.")] = "ort-cpu",
    runner_b: Annotated[Runner, typer.Option(help="What runs B; reference is pure Python.")] = "ort-cpu",
    min_cosine: Annotated[float, typer.Option(min=-1, max=1, help="Least cosine similarity of each output.")] = 0.999,
    max_rel_l2: Annotated[float | None, typer.Option(min=0, help="Greatest relative L2 error of each output.")] = None,
    per_attention: Annotated[
        bool, typer.Option("--per-attention", help="Also the error of each attention of B by itself, the worst first.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run two models on the same inputs and compare each output; exit code 1 past a threshold.

    [bold]Examples[/bold]

    intfa-onnx compare model.onnx model.int8.onnx --shapes input_ids:8x128 --shapes attention_mask:8x128

    intfa-onnx compare model.onnx model.int8.onnx --inputs real.npz --min-cosine 0.9995 --json

    intfa-onnx compare model.onnx model.int8.onnx --inputs real.npz --per-attention
    """
    from intfa_onnx import compare as comparing
    from intfa_onnx.attention_errors import attention_errors
    from intfa_onnx.inputs import load_inputs, parse_shapes, random_inputs

    if inputs and shapes:
        raise UnsupportedError(
            "--shapes is for inputs that are made up, and --inputs gives real ones: leave one of them out"
        )
    sizes = parse_shapes(shapes or [])
    feed = load_inputs(inputs) if inputs else random_inputs(model_io.load(model_a), sizes, seed)
    with _working(f"comparing {model_a} with {model_b}", as_json):
        result = comparing.compare(
            model_a,
            model_b,
            feed,
            runner_a=runner_a,
            runner_b=runner_b,
            min_cosine=min_cosine,
            max_rel_l2=max_rel_l2,
        )
    errors = None
    if per_attention:
        with _working(f"measuring each attention of {model_b}", as_json):
            errors = attention_errors(model_b, feed, runner=runner_b)
    if as_json:
        _print_json(result.as_dict() | (errors.as_dict() if errors else {}))
    else:
        out.print(_metrics_table("output", result.outputs, verdicts=True))
        if errors:
            out.print(_metrics_table("attention, by itself", errors.attentions, verdicts=False))
            if errors.num_unmeasured:
                out.print(f"{errors.num_unmeasured} more inside If, Loop or functions cannot be measured")
        if not result.passed:
            found = "`rewrite --skip NODE` keeps one" if errors else "--per-attention shows which attention costs most"
            out.print(found)
    raise typer.Exit(0 if result.passed else 1)


def _metrics_table(kind: str, metrics: Sequence[OutputMetrics], verdicts: bool) -> Table:
    table = Table(Column(kind, overflow="fold"), "shape", "cosine", "rel. L2", "PSNR dB", "max abs", *[""] * verdicts)
    for m in metrics:
        numbers = (f"{m.cosine:.6f}", f"{m.rel_l2:.3g}", f"{m.psnr_db:.1f}", f"{m.max_abs:.3g}")
        verdict = [Text("passed", "green") if m.passed else Text("failed", "red")] if verdicts else []
        table.add_row(m.name, "x".join(map(str, m.shape)), *numbers, *verdict)
    return table


@app.command()
def libpath(
    host: Annotated[Literal[Host, "polygraphy"], typer.Argument(help="Which host runtime's; or Polygraphy's plugins.")],
) -> None:
    """Print the path of the native library, for a runtime that is not driven from Python.

    For polygraphy print the folder that its plugin tools take.

    [bold]Examples[/bold]

    my_server --custom-op-library "$(intfa-onnx libpath ort)"

    polygraphy plugin match model.onnx --plugin-dir "$(intfa-onnx libpath polygraphy)"
    """
    from intfa_onnx import native

    print(Path(__file__).parent / "polygraphy_plugins" if host == "polygraphy" else native.get_library_path(host))


@app.command()
def build_engine(
    model: ModelPath,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the engine.")],
    shapes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:DIMS", help="Sizes of a dynamic input: one, or MIN,OPT,MAX, e.g. ids:1x16,8x128,32x512."
        ),
    ] = None,
    timing_cache: Annotated[Path | None, typer.Option(help="File of TensorRT's timings, read and written.")] = None,
    embed_plugin: Annotated[
        bool, typer.Option("--embed-plugin", help="Put the plugin library into the engine.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands; build nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing engine.")] = False,
    as_json: Json = False,
) -> None:
    r"""Build a TensorRT engine of a rewritten model with TensorRT's Python package.

    Prints the commands that do the same with trtexec and Polygraphy, for a machine that has only those.

    [bold]Examples[/bold]

    intfa-onnx build-engine model.trt.onnx -o model.plan \
    --shapes input_ids:1x16,8x128,32x512 --shapes attention_mask:1x16,8x128,32x512

    intfa-onnx build-engine model.trt.onnx -o model.plan --dry-run \
    --shapes input_ids:8x128 --shapes attention_mask:8x128
    """
    from intfa_onnx import build_engine as building

    request = building.plan_engine(
        model, output, shapes=shapes or (), timing_cache=timing_cache, embed_plugin=embed_plugin, force=force
    )
    commands = {"trtexec": request.trtexec()} | ({} if embed_plugin else {"polygraphy": request.polygraphy()})
    if not as_json:
        for command in commands.values():
            print(shlex.join(command))
    size = None
    if not dry_run:
        with _working(f"building {output}", as_json):
            size = building.build_engine(request)
    if as_json:
        _print_json({"engine": None if size is None else str(output), "bytes": size, **commands})
    elif size is not None:
        print(f"wrote {output}, {size / 1e6:.1f} MB")


@app.command()
def serve_layout(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The model repository; made if absent.")],
    model: Annotated[Path, typer.Option(help="The rewritten model, for the ONNX Runtime backend.")],
    engine: Annotated[Path | None, typer.Option(help="An engine built from it, for the TensorRT backend.")] = None,
    name: Annotated[str | None, typer.Option(help="The model's name for clients; else its file name.")] = None,
    max_batch_size: Annotated[int, typer.Option(help="Most requests in one batch; 0: no dynamic batching.")] = 32,
    mounted_at: Annotated[str | None, typer.Option(help="DIR as the server sees it, e.g. /models.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace models of the same name.")] = False,
    as_json: Json = False,
) -> None:
    """Write a Triton Inference Server model repository for a rewritten model.

    [bold]Examples[/bold]

    intfa-onnx serve-layout repository --model model.int8.onnx

    intfa-onnx serve-layout repository --model model.int8.onnx --engine model.plan --mounted-at /models
    """
    from dataclasses import asdict

    from intfa_onnx import serve_layout as serving

    with _working(f"writing {folder}", as_json):
        layout = serving.write(
            folder, model, engine=engine, name=name, max_batch_size=max_batch_size, mounted_at=mounted_at, force=force
        )
    if as_json:
        _print_json(asdict(layout))
        return
    batching = f"up to {layout.max_batch_size} requests" if layout.max_batch_size else f"off, {layout.why_no_batching}"
    print(f"wrote {', '.join(layout.models)} in {folder}\ndynamic batching: {batching}\nserve with: {layout.launch}")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this installation and say what is wrong; exit code 1 if rewritten models cannot run.

    [bold]Example[/bold]

    intfa-onnx doctor
    """
    from dataclasses import asdict

    from intfa_onnx.doctor import diagnose, usable

    with _working("checking", as_json):
        checks = diagnose()
    good = usable(checks)
    if as_json:
        _print_json({"usable": good, "checks": [asdict(c) for c in checks]})
    else:
        styles = {"ok": "green", "absent": "yellow", "broken": "red"}
        for c in checks:  # lines, not a table: a path is worth nothing once it is cut to fit a column
            out.print(Text(f"{c.state:7}", styles[c.state]), f"{c.name:25}", end="")
            print(f"{c.found} -> {c.remedy}" if c.remedy else c.found)
        print("rewritten models run here" if good else "rewritten models cannot run here")
    raise typer.Exit(0 if good else 1)


if __name__ == "__main__":
    sys.exit(main())
