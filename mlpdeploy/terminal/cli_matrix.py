"""`mlpdeploy matrix`: every job of a plan, or a shard of them, and one document of how they ended."""

from __future__ import annotations

import fnmatch
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlpdeploy.errors import InputError, MlpdeployError
from mlpdeploy.evidence.documents.matrix import PENDING, Matrix
from mlpdeploy.matrix.executor import Executor, Order
from mlpdeploy.matrix.job import Job
from mlpdeploy.selection.checks import at_least, one_of
from mlpdeploy.terminal.matrix_results import (
    Earlier,
    Html,
    InMarkdown,
    MaxLatency,
    MaxSize,
    MinTop1,
    print_result,
    wanted,
)
from mlpdeploy.terminal.options import Json, print_json, printing, warn
from mlpdeploy.terminal.screen import Terminal

if TYPE_CHECKING:
    from mlpdeploy.matrix.running import Part

PlanFile = Annotated[
    Path, typer.Argument(metavar="PLAN", help="A plan in TOML: options of build, a list being several.")
]
Results = Annotated[list[Path] | None, typer.Argument(metavar="RESULT", help="With --join: saved results.")]
Join = Annotated[bool, typer.Option("--join", help="Run nothing; join the results of shards into one.")]
Shard = Annotated[str | None, typer.Option(metavar="I/N", help="Only this part of the jobs; the first is 1/N.")]
Only = Annotated[
    str | None, typer.Option(metavar="PATTERN", help="Only jobs with this in their name; may have * and ?.")
]
AtOnce = Annotated[int, typer.Option("--jobs", metavar="N", help="Jobs at once on this machine.")]
Retries = Annotated[int, typer.Option(metavar="N", help="How often a job is tried again that was killed.")]
Resume = Annotated[bool, typer.Option("--resume", help="Leave out what the saved result has as done.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List the jobs, and run none.")]
Save = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The result's file; default: matrix/<plan>.json among the artifacts."),
]
On = Annotated[str, typer.Option("--on", metavar="WHERE", help="Where jobs run: here, or ray for a cluster.")]
Address = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="On ray: the cluster, or auto; default: one of this machine.")
]
Store = Annotated[
    str | None, typer.Option(metavar="URL", help="On ray: where artifacts come to, as fsspec has it; default: --out.")
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Where artifacts lie; default: as the plan says, artifacts.")
]


def matrix(
    plan: PlanFile,
    results: Results = None,
    join: Join = False,
    shard: Shard = None,
    only: Only = None,
    at_once: AtOnce = 1,
    retries: Retries = 0,
    resume: Resume = False,
    dry_run: DryRun = False,
    save: Save = None,
    on: On = "here",
    address: Address = None,
    store: Store = None,
    out: Out = None,
    html: Html = None,
    markdown: InMarkdown = None,
    diff: Earlier = None,
    max_latency: MaxLatency = None,
    min_top1: MinTop1 = None,
    max_size: MaxSize = None,
    as_json: Json = False,
) -> None:
    """Build, verify and measure all that a plan lists, each job by itself; exit 1 where one of them failed."""
    from mlpdeploy.matrix.here import Here
    from mlpdeploy.terminal.matrix_table import print_matrix

    _check(results or [], join, resume or dry_run or retries > 0 or at_once != 1 or on != "here")
    at_least("--jobs", at_once, 1)
    at_least("--retries", retries, 0)
    _check_on(on, address, store, at_once)
    part = _part(plan, out, shard, only, save)
    kept = save if join else part.saved
    asked = wanted(html, markdown, diff, max_latency, min_top1, max_size, saved=None if dry_run else kept)
    if dry_run:
        if asked:
            raise InputError("--dry-run has no result: drop --html, --markdown, --diff and limits")
        return _list(part, as_json)
    if join:
        document = _joined(part, results or [], save)
    else:
        executor = _on_ray(part.plan.out, address, store) if on == "ray" else Here(at_once)
        document = _run(part, executor, Order(retries, part.plan.out / "matrix" / plan.stem), resume)
    result = asked.of(document, whole=only is None)
    asked.write(result)
    with printing():
        if as_json:
            print_json(result.to_json())
        else:
            print_matrix(Terminal(), document, None if kept is None else str(kept))
            print_result(Terminal(), result)
    if not document.passed:
        raise typer.Exit(1)


def _part(plan: Path, out: Path | None, shard: str | None, only: str | None, save: Path | None) -> Part:
    """The jobs that are meant, and where their result goes."""
    from mlpdeploy.matrix import running, shards
    from mlpdeploy.matrix.plan import read

    found, which = read(plan, out), None if shard is None else shards.parse(shard)
    jobs = tuple(job for job in found.jobs if only is None or _fits(job.name, only))
    if not jobs:
        raise InputError(f"--only {only}: no job of {plan} fits; --dry-run lists them")
    jobs = jobs if which is None else shards.part(jobs, *which)
    name = "-".join([plan.stem, *(() if which is None else map(str, which)), *(() if only is None else ("only",))])
    return running.Part(found, jobs, save or found.out / "matrix" / f"{name}.json", which)


def _list(part: Part, as_json: bool) -> None:
    from mlpdeploy.terminal.matrix_table import print_jobs

    document = part.document({job.name: replace(job.row(), key=_key(job)) for job in part.jobs})
    with printing():
        print_json(document.to_json()) if as_json else print_jobs(Terminal(), document.rows)


def _joined(part: Part, results: list[Path], save: Path | None) -> Matrix:
    from mlpdeploy.matrix import running

    document = running.join(part, results)
    if save is not None:
        running.write(part, {row.job: row for row in document.rows})
    if missing := [row.job for row in document.rows if row.state == PENDING]:
        warn(f"{len(missing)} jobs are in no result, or were not begun: {', '.join(missing)}")
    return document


def _run(part: Part, executor: Executor, order: Order, resume: bool) -> Matrix:
    from mlpdeploy.matrix import running
    from mlpdeploy.terminal.matrix_table import LiveMatrix

    with LiveMatrix(Terminal(stderr=True), len(part.jobs)).shown() as live:
        return running.run(part, executor, order, live, resume=resume)


def _on_ray(out: Path, address: str | None, store: str | None) -> Executor:
    from mlpdeploy.artifact.depot import depot_at
    from mlpdeploy.matrix.on_ray import OnRay
    from mlpdeploy.matrix.ray_session import require

    require(address)
    return OnRay(depot_at(store or str(out)), out, address)


def _check_on(on: str, address: str | None, store: str | None, at_once: int) -> None:
    """Raise InputError where an option belongs to another place than jobs are to run in."""
    one_of("--on", on, ("here", "ray"))
    for flag, value in (("--address", address), ("--store", store)):
        if value is not None and on == "here":
            raise InputError(f"{flag} {value}: that is for --on ray; on this machine artifacts lie in --out")
    if on == "ray" and at_once != 1:
        raise InputError("--jobs is for --on here: on Ray run as many at once as there are CPUs (needs = { cpus = N })")


def _key(job: Job) -> str | None:
    """The key of a job's artifact; None where that is not known before it is built, or it cannot be built here."""
    try:
        return job.key()
    except MlpdeployError:
        return None


def _fits(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*")


def _check(results: list[Path], join: bool, runs: bool) -> None:
    """Raise InputError where results are given and not to be joined, or the other way round."""
    if results and not join:
        raise InputError(f"{results[0]}: results are there to be joined: say --join")
    if join and not results:
        raise InputError("--join: give the results to join, as in `mlpdeploy matrix plan.toml --join shards/*.json`")
    if join and runs:
        raise InputError("--join runs nothing: drop --dry-run, --resume, --retries, --jobs and --on")
