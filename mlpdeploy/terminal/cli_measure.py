"""The commands that measure: bench, regress, history, sensitivity."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mlpdeploy import commands
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.selection import OUT, Selection
from mlpdeploy.selection.arguments import FIELDS, TAKES
from mlpdeploy.selection.parse import parse_sizes
from mlpdeploy.terminal.live import Live
from mlpdeploy.terminal.options import (
    Data,
    GithubBenchmark,
    Json,
    Name,
    Out,
    Threads,
    TimedSizes,
    Trust,
    choosing,
    keep,
    opening,
    print_json,
    printing,
    require_room,
    warn,
    write,
)
from mlpdeploy.terminal.screen import Terminal


@opening(*TAKES["bench"])
def bench(
    selection: Selection,
    artifact: Artifact | None,
    *,
    against: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="eager, compile, max-autotune, export, or names of networks.")
    ] = None,
    batch: TimedSizes = None,
    threads: Threads = None,
    time: Annotated[float, typer.Option("--time", metavar="S", help="Seconds for each batch size.")] = 20.0,
    credit: Annotated[bool, typer.Option("--credit", help="Time the engine without each rule too.")] = False,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the result, for `regress`.")] = None,
    github_benchmark: GithubBenchmark = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Time an engine beside PyTorch and the plain export; say how near to the limit it is and where its time goes."""
    from mlpdeploy.terminal.measurements import print_bench

    sizes = parse_sizes(batch)
    require_room(save, github_benchmark)
    rivals = None if against is None else [part.strip() for part in against.split(",") if part.strip()]
    with Live(Terminal(stderr=True)).shown() as live:
        found = commands.bench(
            selection, artifact=artifact, against=rivals, sizes=sizes, threads=threads, seconds=time, credit=credit,
            trusted=trust, progress=live,
        )  # fmt: skip
    document = found.to_json()
    keep(save, document)
    _keep_benchmark(github_benchmark, document)
    with printing():
        if as_json:
            print_json(document)
        else:
            print_bench(Terminal(), document)


@choosing(*TAKES["regress"])
def regress(
    selection: Selection,
    *,
    baseline: Annotated[
        str | None, typer.Option(metavar="REF", help="A saved result, an artifact's folder, or git:REVISION.")
    ] = None,
    baseline_env: Annotated[
        str | None,
        typer.Option("--baseline-env", metavar="PYTHON", help="Or an interpreter with another mlpdeploy or engine."),
    ] = None,
    max_slowdown: Annotated[str, typer.Option(metavar="P%", help="How much slower it may get.")] = "3%",
    max_accuracy_loss: Annotated[str, typer.Option(metavar="P%", help="How much accuracy it may lose.")] = "0.5%",
    max_size_growth: Annotated[str, typer.Option(metavar="P%", help="How much the engine's file may grow.")] = "1%",
    max_memory_growth: Annotated[str, typer.Option(metavar="P%", help="How much memory may grow.")] = "1%",
    max_build_growth: Annotated[str, typer.Option(metavar="P%", help="How much longer it may build.")] = "100%",
    accept: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GATE",
            help="Let one of them get worse: latency, engine-size, build-time, layers, transposes, launches, copies, "
            "launched-transposes, memory, accuracy or verification.",
        ),
    ] = None,
    undecided: Annotated[str, typer.Option(metavar="pass|fail", help="How an undecided run ends.")] = "fail",
    batch: TimedSizes = None,
    threads: Threads = None,
    time: Annotated[float, typer.Option("--time", metavar="S", help="Seconds for timing; at least ten pairs.")] = 300.0,
    data: Data = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the gates as JUnit XML.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Append the gates as a Markdown table.")] = None,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the result, for a later run.")] = None,
    github_benchmark: GithubBenchmark = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Hold an engine against a baseline; exit 1 where it got slower, larger or less accurate."""
    from mlpdeploy.evidence.documents import outcome
    from mlpdeploy.evidence.documents.regress import Limits, percentage
    from mlpdeploy.terminal.measurements import print_regress

    sizes = parse_sizes(batch)
    limits = Limits(
        slowdown=percentage("--max-slowdown", max_slowdown),
        accuracy=percentage("--max-accuracy-loss", max_accuracy_loss),
        size=percentage("--max-size-growth", max_size_growth),
        memory=percentage("--max-memory-growth", max_memory_growth),
        build=percentage("--max-build-growth", max_build_growth),
    )
    require_room(save, junit, markdown, github_benchmark)
    with Live(Terminal(stderr=True)).shown() as live:
        found = commands.regress(
            selection,
            baseline,
            baseline_env=baseline_env,
            limits=limits,
            sizes=sizes,
            threads=threads,
            seconds=time,
            undecided=undecided,
            accepted=accept or (),
            data=data,
            trusted=trust,
            progress=live,
        )
    document = found.to_json()
    keep(save, document)
    keep(junit, outcome.junit(document))
    keep(markdown, outcome.markdown(document), append=True)
    _keep_benchmark(github_benchmark, document)
    with printing():
        if as_json:
            print_json(document)
        else:
            print_regress(Terminal(), document)
    if not found.passed:
        raise typer.Exit(1)


def _keep_benchmark(path: Path | None, document: dict[str, Any]) -> None:
    """What `--github-benchmark` asks for; that nothing was timed is said, since the action refuses an empty list."""
    from mlpdeploy.evidence.documents.github_benchmark import benchmarks

    if path is None:
        return
    found = benchmarks(document)
    if not found:
        warn(f"{path}: an empty list, since nothing was timed; github-action-benchmark refuses one")
    keep(path, found)


_FIXED = (
    "backend", "batch", "gpus", "io", "level", "features", "timing_cache", "plugin", "route", "max_drop", "min_sqnr",
)  # fmt: skip
"""What sensitivity has nothing to do with, or is about."""


def history(
    name: Name,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the trend as SVG.")] = None,
    out: Out = OUT,
    as_json: Json = False,
) -> None:
    """Show how a network's latency went from run to run of bench and regress."""
    from mlpdeploy.evidence.documents.history import svg as drawn
    from mlpdeploy.terminal.measurements import print_history

    require_room(svg)
    found = commands.history(Selection(name, out=out))
    if svg is not None:
        write(svg, drawn(found))
    if as_json:
        print_json(found.to_json())
    else:
        print_history(Terminal(), found)


@choosing(*(name for name in FIELDS if name not in _FIXED), precision="int8")
def sensitivity(selection: Selection, *, as_json: Json = False) -> None:
    """Rank a network's modules by what INT8 or FP8 costs each alone, as a table and a picture."""
    from mlpdeploy.terminal.sensitivity import print_sensitivity

    with Live(Terminal(stderr=True)).shown() as live:
        found, picture = commands.sensitivity(selection, progress=live)
    if as_json:
        print_json(found | {"picture": str(picture)})
    else:
        print_sensitivity(Terminal(), found, str(picture))
