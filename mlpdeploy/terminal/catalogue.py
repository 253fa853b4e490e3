"""What `mlpdeploy list` prints: every recipe, one line each, below its family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from textwrap import wrap
from typing import Any

from rich.console import Console
from rich.padding import Padding

from mlpdeploy.evidence.report.words import moving_facts
from mlpdeploy.terminal.screen import escape


def print_catalogue(console: Console, catalogue: Sequence[Mapping[str, Any]], detailed: bool = False) -> None:
    """`mlpdeploy list`: one block a family; `detailed` adds a line for each network, with the rules that fire."""
    for index, (_, group) in enumerate(groupby(catalogue, key=lambda entry: entry["family"])):
        entries = list(group)
        if index:
            console.print()
        sources = "; ".join(dict.fromkeys(entry["source"] for entry in entries))
        console.print(f"[bold cyan]{escape(entries[0]['family'])}[/]  {escape(sources)}", highlight=False)
        console.print(f"  {escape(', '.join(entries[0]['precisions']))}", highlight=False)
        for line in _family(entries, detailed):
            console.print(line, highlight=False)
    which = "below each network which" if detailed else "`mlpdeploy list PATTERN` says which"
    console.print(f"\nTop-1 is what was published, in percent. Rewrites: how often rules fire; {which}.")
    if detailed:
        console.print("Launches: of TensorRT-RTX in FP16 for one inference, PyTorch's export -> ours.")
    console.print("Other networks: timm:<model>, hf-hub:owner/model and package.module:factory.", markup=False)


def print_rulebook(console: Console, rules: Sequence[Mapping[str, Any]]) -> None:
    """`mlpdeploy list --rules`: the rules of the graph, phase by phase, then the forms of the file."""
    for title, group in groupby(rules, key=lambda rule: rule["phase"]):
        console.print(f"[bold cyan]{'Rules of the graph: ' + title if title else 'Forms of the ONNX file'}[/]")
        for rule in group:
            console.print(f"  {escape(rule['name'])}[yellow]{escape(_where(rule, rules))}[/]", highlight=False)
            console.print(Padding(f"[dim]{escape(rule['what'])}[/]", (0, 0, 0, 4)), highlight=False)
        console.print()
    console.print("--disable-rule NAME leaves one out, --enable-rule NAME runs a rule that is off.", markup=False)


def _where(rule: Mapping[str, Any], rules: Sequence[Mapping[str, Any]]) -> str:
    """On which engines a rule does not run, or on which a form does; nothing to say of one that always does."""
    engines = [f"{one} (needed)" if one in rule["needed"] else one for one in rule["engines"]]
    if not rule["default"]:
        return "  off"
    if rule["phase"] is None:
        return f"  {', '.join(engines)}"
    every = dict.fromkeys(one for other in rules if other["phase"] for one in other["engines"])
    missing = [one for one in every if one not in engines]
    if len(missing) > len(engines):
        return f"  for {', '.join(engines)} alone"
    return f"  off for {', '.join(missing)}" if missing else ""


def _family(entries: Sequence[Mapping[str, Any]], detailed: bool) -> Iterator[str]:
    yield f"  {'':29}{'input':>11}{'M params':>10}{'GMACs':>8}{'top-1':>7}{'rewrites':>10}"
    for entry in entries:
        name = entry["name"] + (f" ({', '.join(entry['aliases'])})" if entry["aliases"] else "")
        top1 = "-" if entry["top1"] is None else f"{entry['top1']:.1f}"
        rewrites = sum(entry["rules"].values()) or "-"
        size = f"{_taken(entry):>11}{_amount(entry['parameters'] / 1e6, 1):>10}{_amount(entry['gmacs'], 2):>8}"
        yield f"  {escape(f'{name:29}')}{size}{top1:>7}{rewrites:>10}"
        fired = ", ".join(f"{rule} {count}" for rule, count in entry["rules"].items())
        if detailed and entry["inputs"]:
            yield f"[dim]    takes {escape(', '.join(map(_input, entry['inputs'])))}[/]"
        if detailed:
            yield f"[dim]    {escape(fired) or 'no rule fires, or it was not counted'}[/]"
        if detailed and entry["launches"]:
            total, copies, transposes = (f"{plain} -> {ours}" for plain, ours in entry["launches"].values())
            yield f"[dim]    TensorRT launches {total}; only copy {copies}; transpose {transposes}[/]"
            for what, modules in moving_facts({"where": entry["moves"]}).items():
                for line in wrap(f"{what}: {modules}", 76, subsequent_indent="  "):
                    yield f"[dim]    {escape(line)}[/]"


def _amount(value: float, digits: int) -> str:
    """A number with so many digits, or what it is less than where these would all be 0."""
    least = 10**-digits
    return f"{value:.{digits}f}" if value >= least else f"<{least:.{digits}f}"


def _taken(entry: Mapping[str, Any]) -> str:
    """The shape of a network's one input, or how many it has."""
    inputs = entry["inputs"]
    if len(inputs) > 1:
        return f"{len(inputs)} inputs"
    return "x".join(map(str, inputs[0]["shape"] if inputs else entry["input_shape"]))


def _input(given: Mapping[str, Any]) -> str:
    """`ids 10 int64 of 0 to 999`: name, shape, dtype where it is not float32, and range of an input."""
    low, high = given["low"], given["high"]
    words = [given["name"], "x".join(map(str, given["shape"]))]
    if given["dtype"] != "float32":
        words.append(given["dtype"])
    if low is not None and high is not None:
        words.append(f"of {low:g} to {high - 1 if given['dtype'] == 'int64' else high:g}")
    return " ".join(words)
