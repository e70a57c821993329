"""Exports the zoo: ``python models/zoo [NAME...]``. What is there is kept: a broken run goes on where it stopped."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

sys.path.insert(0, str(Path(__file__).parents[1]))

FOLDER = Path(__file__).parents[1] / "cache" / "zoo"


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Models; all if none is named.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the exported files.")] = FOLDER,
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="Processes.")] = os.cpu_count() or 1,
) -> None:
    """Export the zoo, each model with every exporter, opset and attention implementation it has.

    What an exporter refuses is recorded; exit code 1 if a model cannot even be built.

    Examples: python models/zoo; python models/zoo bert llama -j 1
    """
    from zoo.case import DEFINITIONS
    from zoo.export import export, one_thread, variants

    unknown = set(names or ()) - set(DEFINITIONS)
    if unknown:
        Console(stderr=True).print(f"no such model: {', '.join(sorted(unknown))}; there are {', '.join(DEFINITIONS)}")
        raise typer.Exit(2)
    output.mkdir(parents=True, exist_ok=True)
    refused, unbuilt, todo = 0, 0, variants(names)
    with (
        ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=one_thread) as pool,
        Progress(console=Console(stderr=True)) as progress,
    ):
        task = progress.add_task("exporting", total=len(todo))
        futures = {pool.submit(export, variant, output): variant for variant in todo}
        for future in as_completed(futures):
            progress.advance(task)
            try:
                done = future.result()
            except Exception as error:  # whatever building a model raises, such as libraries that do not fit
                unbuilt += 1
                progress.console.print(f"{futures[future].stem} cannot be built: {error}")
                continue
            if done.file is None:
                refused += 1
                progress.console.print(f"{done.variant.stem}: {done.error.splitlines()[0][:160]}")
    print(f"{len(todo) - refused - unbuilt} of {len(todo)} variants are in {output}; the exporters refused {refused}")
    if unbuilt:
        Console(stderr=True).print(f"{unbuilt} could not be built: see above; run again, what is there is kept")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
