"""What the commands print: tables that fit 80 columns, and live progress on stderr."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

SIMPLE: dict[str, Any] = {"box": None, "padding": (0, 2, 0, 0), "header_style": "bold"}


class Live:
    """Draws the stage that runs, and leaves one line for each that has ended; in a log, only those lines."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    @contextmanager
    def shown(self) -> Iterator[Live]:
        """Draw while the body runs, where there is a terminal."""
        if not self.console.is_terminal:
            yield self
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as self._progress:
            yield self
        self._progress = None

    def begin(self, stage: str) -> None:
        """See progress.Listener."""
        if self._progress is not None:
            self._task = self._progress.add_task(escape(stage), total=None)

    def step(self, phase: str, done: int, total: int) -> None:
        """See progress.Listener."""
        if self._progress is not None and self._task is not None:
            shown = phase if len(phase) <= 40 else f"{phase[:39]}…"
            self._progress.update(self._task, description=escape(shown), completed=done, total=total or None)

    def end(self, stage: str, seconds: float, failed: bool) -> None:
        """See progress.Listener."""
        if self._progress is not None and self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        outcome = "  [red]failed[/]" if failed else ""
        self.console.print(f"  {escape(stage):<16}{seconds:7.1f} s{outcome}", highlight=False)

    def say(self, line: str) -> None:
        """See progress.Listener."""
        self.console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)


def print_catalogue(console: Console, catalogue: Sequence[Mapping[str, Any]]) -> None:
    """`mlpdeploy list`: one block a family."""
    for index, (_, group) in enumerate(groupby(catalogue, key=lambda entry: entry["family"])):
        entries = list(group)
        if index:
            console.print()
        console.print(f"[bold cyan]{entries[0]['family']}[/]  {escape(entries[0]['source'])}", highlight=False)
        console.print(f"     {' '.join(entries[0]['precisions'])}", style="dim", highlight=False)
        console.print(_family(entries))
    console.print("\nMore networks: timm:<model> and package.module:factory. Top-1 is what was published, in percent.")


def _family(entries: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(**SIMPLE)
    table.add_column("  name", width=24)
    table.add_column("input", width=9)
    table.add_column("M params", justify="right", width=8)
    table.add_column("GMACs", justify="right", width=6)
    table.add_column("top-1", justify="right", width=5)
    table.add_column("rules fire", ratio=1)
    for entry in entries:
        names = entry["name"] + (f" ({', '.join(entry['aliases'])})" if entry["aliases"] else "")
        table.add_row(
            f"  {names}",
            "x".join(map(str, entry["input_shape"])),
            f"{entry['parameters'] / 1e6:.1f}",
            f"{entry['gmacs']:.2f}",
            "-" if entry["top1"] is None else f"{entry['top1']:.1f}",
            ", ".join(f"{name} {count}" for name, count in entry["rules"].items()) or "-",
        )
    return table


def print_build(console: Console, folder: str, manifest: Mapping[str, Any], cached: bool) -> None:
    """`mlpdeploy build`: what there is now, and where."""
    done = "already built (cache hit)" if cached else f"built in {sum(manifest['seconds'].values()):.1f} s"
    title = f"{manifest['recipe']['name']} {manifest['precision']} with {manifest['backend']}"
    console.print(f"[bold]{escape(title)}[/]: {done}", highlight=False)
    console.print(_facts(_summary(manifest)))
    table = Table(**SIMPLE)
    for name, justify in (("  file", "left"), ("MB", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name, facts in manifest["files"].items():
        table.add_row(f"  {name}", f"{facts['bytes'] / 1e6:.1f}")
    console.print(table)
    console.print(f"  in {escape(folder)}", highlight=False, soft_wrap=True)


def print_verification(console: Console, name: str, weights: str, document: Mapping[str, Any]) -> None:
    """`mlpdeploy verify`: the ladder, and the verdict."""
    sizes = ", ".join(map(str, document["sizes"]))
    console.print(f"[bold]{escape(name)}[/] at batch {sizes}, {document['inputs']} inputs", highlight=False)
    console.print(f"  {escape(weights)}", highlight=False, soft_wrap=True)
    table = Table(**SIMPLE)
    for column in ("  stage", "result"):
        table.add_column(column)
    for column in ("error", "budget", "top-1", "s"):
        table.add_column(column, justify="right")
    for stage in document["stages"]:
        result = {"passed": "[green]passed[/]", "failed": "[red]failed[/]"}.get(stage["status"], stage["status"])
        error = "" if stage["max_relative"] is None else f"{stage['max_relative']:.1e}"
        agreement = (stage["images"] or {}).get("agreement")
        table.add_row(
            f"  {stage['name']}",
            result,
            error,
            f"{stage['budget']['max_relative_error']:.0e}",
            "-" if agreement is None else f"{agreement['top1']:.1%}",
            f"{stage['seconds']:.1f}",
        )
    console.print(table)
    for stage in document["stages"]:
        if stage["status"] == "not executed":
            console.print(f"  {stage['name']}: {escape(stage['reason'])}", highlight=False)
    for note in document["notes"]:
        console.print(f"  note: {escape(note)}", highlight=False)
    colour = "green" if document["passed"] else "red"
    console.print(f"[bold {colour}]{escape(document['verdict'])}[/]", highlight=False)


def print_artifact(console: Console, found: Mapping[str, Any]) -> None:
    """`mlpdeploy inspect`: what is in an artifact."""
    manifest, verification = found["manifest"], found["verification"]
    title = f"{manifest['recipe']['name']} {manifest['precision']} with {manifest['backend']}"
    console.print(f"[bold]{escape(title)}[/]  {escape(found['folder'])}", highlight=False, soft_wrap=True)
    verdict = "not verified yet" if verification is None else f"{verification['created']}: {verification['verdict']}"
    versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    console.print(_facts(_summary(manifest) | {"versions": versions, "verified": verdict}))

    console.print("\n[bold]Rules[/]")
    rules = [(rule["name"], rule["fired"], len(rule["refused"])) for rule in manifest["rules"]]
    console.print(_counts(("rule", "fired", "refused"), rules))
    for rule in manifest["rules"]:
        for refusal in rule["refused"]:
            line = f"  {rule['name']} refused {refusal['where']}: {refusal['reason']}"
            console.print(escape(line), highlight=False)
    before, after = manifest["ops"]["before"], manifest["ops"]["after"]
    console.print("\n[bold]Operations of the graph[/]")
    rows = [(op, before.get(op, 0), after.get(op, 0)) for op in dict.fromkeys([*before, *after])]
    rows.append(("all", sum(before.values()), sum(after.values())))
    console.print(_counts(("operation", "before", "after"), rows))
    parsed = manifest["facts"].get("parsed", {}).get("dtypes")
    console.print(f"\n[bold]Dtypes of the {'engine' if parsed else 'graph'}, by layer type[/]")
    dtypes = Table(**SIMPLE)
    dtypes.add_column("  layer type")
    dtypes.add_column("dtypes")
    for layer, counts in (parsed or manifest["dtypes"]).items():
        dtypes.add_row(f"  {layer}", ", ".join(f"{dtype} {count}" for dtype, count in counts.items()))
    console.print(dtypes)
    for kept in manifest["kept_fp32"]:
        console.print(f"  kept in FP32: {escape(kept['module'] or kept['node'])}: {escape(kept['reason'])}")


def print_doctor(console: Console, found: Mapping[str, Any]) -> None:
    """`mlpdeploy doctor`: the machine, then every backend."""
    machine, cpu, gpu = found["machine"], found["machine"]["cpu"], found["machine"]["gpu"]
    features = "not known on this system" if cpu["features"] is None else " ".join(cpu["features"]) or "none of note"
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in found["versions"].items())
    rows = {
        "system": f"{machine['system']}, Python {machine['python']}",
        "CPU": f"{cpu['model']}, {cpu['cores']} cores",
        "features": features,
        "GPU": gpu if isinstance(gpu, str) else f"{gpu['name']} ({gpu['capability']}), driver for CUDA {gpu['driver']}",
        "libraries": versions,
    }
    console.print("[bold]This machine[/]")
    console.print(_facts(rows))
    console.print("\n[bold]Backends[/]")
    table = Table(**SIMPLE)
    for column in ("  name", "builds", "runs", "precisions"):
        table.add_column(column)
    for backend in found["backends"]:
        yes, no = "[green]yes[/]", "[yellow]no[/]"
        table.add_row(
            f"  {backend['name']}",
            yes if backend["cannot_build"] is None else no,
            yes if backend["cannot_run"] is None else no,
            " ".join(backend["precisions"]),
        )
    console.print(table)
    for backend in found["backends"]:
        for what, reason in (("build", backend["cannot_build"]), ("run", backend["cannot_run"])):
            if reason is not None and (what == "build" or reason != backend["cannot_build"]):
                console.print(f"  {backend['name']} cannot {what}: {escape(reason)}", highlight=False)


def _summary(manifest: Mapping[str, Any]) -> dict[str, str]:
    batch = manifest["batch"]
    fired = ", ".join(f"{rule['name']} {rule['fired']}" for rule in manifest["rules"] if rule["fired"])
    before, after = (sum(manifest["ops"][when].values()) for when in ("before", "after"))
    return {
        "weights": manifest["weights"]["text"],
        "batch": f"{batch['min']} to {batch['max']}, tuned for {batch['opt']}",
        "rules": fired or "none fired",
        "operations": f"{before} before the rules, {after} after",
        "kept in FP32": f"{len(manifest['kept_fp32'])} operations" if manifest["kept_fp32"] else "nothing",
    }


def _facts(rows: Mapping[str, str]) -> Table:
    table = Table(**(SIMPLE | {"show_header": False}))
    table.add_column(style="dim")
    table.add_column()
    for name, value in rows.items():
        table.add_row(f"  {name}", escape(value))
    return table


def _counts(header: tuple[str, str, str], rows: Sequence[tuple[str, int, int]]) -> Table:
    table = Table(**SIMPLE)
    table.add_column(f"  {header[0]}")
    for name in header[1:]:
        table.add_column(name, justify="right")
    for row_name, first, second in rows:
        table.add_row(f"  {row_name}", str(first), str(second))
    return table
