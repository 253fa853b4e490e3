"""The script for GPUs, dry: every path with tiny sizes, on a machine that lacks what a GPU machine may lack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import commands, fused, machine, plan, report, rules
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.book import Book
from benchmarks.gpu.crew import Task, once
from benchmarks.gpu.networks import NAMES, TINY
from mlpdeploy.selection.choice import NetworkChoice

pytest.importorskip("triton", reason="Triton, which the kernel is written in, is not installed")

WITHOUT = """
from importlib.machinery import PathFinder
def find_spec(cls, name, *given, found=PathFinder.find_spec):
    return None if name.partition(".")[0] in {lacking!r} else found(name, *given)
PathFinder.find_spec = classmethod(find_spec)
"""
LACKING = ("openvino", "tensorrt_rtx", "tensorrt")
"""What the image of a machine with a GPU has not: no process of the script can import it."""


def run(folder: Path, *arguments: str, lacking: Sequence[str] = LACKING) -> subprocess.CompletedProcess[str]:
    """The script, whose processes lack packages."""
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(WITHOUT.format(lacking=lacking))
    root = Path(__file__).parents[3]
    places = os.pathsep.join([str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=root, env=os.environ | {"PYTHONPATH": places}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_dry_run_takes_every_path_and_goes_on_where_it_ended(tmp_path: Path) -> None:
    """But that of the command line, which no process without typer could take."""
    parts, lacking = "correctness,kernel,network,rules", (*LACKING, "typer", "rich", "onnx_ir", "polygraphy")
    dry = ("--dry-run", "--seconds", "0.1", "--out", str(tmp_path / "out"))
    done = run(tmp_path, *dry, "--parts", parts, lacking=lacking)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "out" / "dry-run.json").read_text())
    names = [name.split(" ")[0] for name in document["results"]]
    once = {"roofline": 1, "network": 2, "rules": 1, "epilogues": 2}
    assert {name: names.count(name) for name in names} == {"correctness": 2, "kernel": 2, **once}
    for name, row in document["results"].items():
        assert not {"failed", "ended", "trying"} & {*row} and not row.get("left"), (name, row)
    network = document["results"]["network tiny batch 2"]
    assert set(network["times"]) == {"eager, launched", "ours", report.WITHOUT, *report.RIVALS}
    tuned = document["results"]["network tiny batch 2 max-autotune"]
    assert set(tuned["times"]) == {"ours", "compile max-autotune", "ours max-autotune"}
    changed = document["results"]["rules tiny batch 2"]
    assert {*changed["times"]} - {"searched"} == {"ours", *rules.changes(TINY, "cpu")[: rules.DRY]}
    assert changed["tried"] == rules.DRY + 2 and not changed["failed_changes"]
    fused = document["results"]["epilogues tiny batch 2"]
    assert set(fused["times"]) == {"ours", "hoisted", "without epilogues"}
    mixer = document["results"]["epilogues tiny_mixer batch 2"]
    assert set(mixer["times"]) == {"ours", "token MLPs", "without GELU", "token MLPs, without GELU"}
    assert max(error for row in (network, tuned, changed, fused, mixer) for error in row["errors"].values()) < 1e-5
    text = (tmp_path / "out" / "dry-run.md").read_text()
    assert "tiny height batch 2" in text and text.count(report.NOT_YET) >= 9
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["dry-run.json", "dry-run.md"]

    again = run(tmp_path, *dry, "--parts", parts, lacking=lacking)
    assert again.returncode == 0 and again.stdout.count("\n") == 1, again.stdout


@pytest.mark.large
def test_a_dry_run_types_every_command(tmp_path: Path) -> None:
    """On a machine without the engines that the commands are not asked for."""
    dry = ("--dry-run", "--seconds", "0.1", "--out", str(tmp_path / "out"), "--parts", "commands")
    done = run(tmp_path, *dry)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "out" / "dry-run.json").read_text())["results"].values()
    found = row["commands"]
    assert {name: one["exit"] for name, one in found.items()} == dict.fromkeys(commands.FOUND, 0)
    assert not any("failed" in one for one in found.values())
    assert found["verify"]["verdict"] == "passed" and found["regress"]["verdict"]
    assert found["bench"]["ratios"].keys() == {"eager"} and found["report"]["bytes"].keys() == {".html", ".md"}
    text = (tmp_path / "out" / "dry-run.md").read_text()
    assert all(f"| onnxruntime tiny | {name} | 0 |" in text for name in found)


@pytest.mark.slow
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = run(tmp_path)
    assert done.returncode == 3 and done.stderr.startswith("no NVIDIA GPU") and not done.stdout


def test_a_part_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--parts", "everything"])
    assert "no part is called everything" in capsys.readouterr().err


def task(name: str) -> Task:
    return Task("network", name, 0, once, ())


def test_a_row_that_fails_costs_no_other(tmp_path: Path) -> None:
    book = Book(tmp_path, "cpu", True, ("network",))
    broken = {"failed": "RuntimeError: the GPU\nfell off"}
    book.add(task("correctness b"), {"errors": {"float16": {"error": 1.0, "allowed": 0.1}}, "passed": False})
    for part in ("kernel a", "network c", "network c max-autotune", "epilogues c", "rules c", "engine c", "commands c"):
        book.add(task(f"{part} batch 1"), broken)
    book.add(task("kernel nan"), {"ms": float("nan")})
    begun = {"commands": {"build": {"exit": -11, "seconds": 1.0, "failed": "SIGSEGV"}}, "left": ["verify"]}
    book.add(task("commands d"), begun)
    book.add(task("commands d"), broken)
    document = json.loads((tmp_path / "dry-run.json").read_text())
    assert document["results"]["kernel a batch 1"]["failed"] == "RuntimeError: the GPU fell off"
    assert document["results"]["kernel nan"]["failed"].startswith("ValueError")
    assert (
        document["results"]["commands d"] | begun | {"ended": "RuntimeError: the GPU fell off"}
        == (document["results"]["commands d"])
    )
    text = (tmp_path / "dry-run.md").read_text()
    assert text.count("the GPU fell off") == 8 and "float16 1.0e+00 | failed" in text
    assert "| d | build | -11 | 1.0 | SIGSEGV |" in text


def test_rows_tell_the_commit_that_measured_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLPDEPLOY_COMMIT", raising=False)
    for number, commit in enumerate(("abc1234", "abc1234", None, "def5678")):
        monkeypatch.setattr(machine, "commit", lambda commit=commit: commit)
        Book(tmp_path, "cpu", True, ()).add(task(f"network {number}"), {"failed": "it is a test"})
    monkeypatch.setenv("MLPDEPLOY_COMMIT", "fed9876")
    Book(tmp_path, "cpu", True, ()).add(task("network 4"), {"failed": "it is a test"})
    text = (tmp_path / "dry-run.md").read_text()
    assert "; at commit abc1234, def5678, fed9876. Times are medians" in text
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.commit() is None


def test_what_the_kernels_of_mlps_are_worth_is_measured_at_every_batch() -> None:
    """Of the networks of products over tokens, whose rows come behind those of each network at the largest batch."""
    asked = [one.name for one in plan.tasks("cuda", False, 1.0)]
    for name in ("mixer_b16", "mixer_s32", "resmlp_24", "gmlp_s16", "gmixer_24"):
        rows = [f"epilogues {name} batch {batch}" for batch in (128, 8, 1)]
        assert [one for one in asked if one in rows] == rows
        assert name not in NAMES or asked.index(rows[0]) > asked.index(f"network {name} batch 128")


@pytest.mark.parametrize(
    ("name", "fired"),
    [
        (fused.TINY_MIXER, {"token MLPs", "without GELU", "token MLPs, without GELU"}),
        (TINY, {"hoisted", "without epilogues"}),
    ],
)
def test_a_network_is_measured_with_the_rules_that_fire_in_it(name: str, fired: set[str]) -> None:
    found = fused.contenders(name, "cpu")
    assert found.keys() == {"ours", *fired}
    graphs = {str(network.ours.graph) for network in found.values()}
    assert len(graphs) == len(found)
    if name is fused.TINY_MIXER:
        both = [str(node.target) for node in found["token MLPs"].ours.graph.nodes]
        assert both.count("mlpdeploy.token_mlp.default") == 2
        assert both.count("mlpdeploy.segment_grouped_projection_epilogue.default") == 2


def test_a_network_that_no_rule_changes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "contenders", lambda name, device: {"ours": None})
    assert [*fused.measure({}, "gmixer_24", 1, "cpu", True, 0.1)] == [{"nothing": "none of the rules fires"}]


LARGE = (
    "raft_mlp_s",
    "raft_mlp_hierarchy_m",
    "vip_s14",
    "vip_m7",
    "vip_l7",
    "raft_mlp_m",
    "raft_mlp_l",
    "raft_mlp_r2",
    "raft_mlp_deep",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["vip_s7", "raft_mlp_r4", *(pytest.param(n, marks=pytest.mark.large) for n in LARGE)],
)
def test_every_projection_of_a_network_is_a_case(name: str) -> None:
    """The batch entries of one image, then P, Q, S, O, K and T."""
    from benchmarks.gpu import kernels
    from mlpdeploy.engine.backend import backends
    from mlpdeploy.graph.custom_ops import SEGMENT_GROUPED_PROJECTION
    from mlpdeploy.graph.rewrite import rewrite
    from mlpdeploy.graph.tracing.trace import trace
    from mlpdeploy.network.source import source_of

    source = source_of(NetworkChoice(name))
    known = {(c.entries, c.p, c.q, c.s, c.o, c.k, c.t) for c in (*kernels.CASES, *kernels.OTHERS)}
    found, off = set(), backends()["tensorrt"].off
    for node in rewrite(trace(source.network, source.specs()), off=off).module.graph.nodes:
        if node.target is SEGMENT_GROUPED_PROJECTION:
            (batch, p, q, s, *trailing), segments = node.args[0].meta["val"].shape, node.args[2]
            entries = batch.node.expr.as_coeff_Mul()[0]
            size = node.args[1].meta["val"].shape[0] // segments
            found.add((int(entries), p, q, s, *(trailing or [1]), segments, size))
    assert found and found <= known


def test_choices_lie_with_the_results_too_and_a_file_that_cannot_be_written_costs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.gpu import __main__ as command
    from mlpdeploy import kernels

    tuning: Any = kernels.load("common.tuning")
    launching: Any = kernels.load("common.launching")

    def ship(sm: int) -> None:
        raise PermissionError(13, "Permission denied", "measured.json")

    monkeypatch.setattr(tuning, "ship", ship)
    monkeypatch.setattr(launching, "compute_capability", lambda device: 90)
    assert command._shipped(tmp_path).endswith("Permission denied: 'measured.json'")
    (made := tmp_path / "kernels" / "measured.json").parent.mkdir()
    made.write_text("{}")
    monkeypatch.setattr(tuning, "ship", lambda sm: made)
    assert command._shipped(command.RESULTS) == str(made)
    assert command._shipped(tmp_path) == str(tmp_path / "measured.json") and (tmp_path / "measured.json").is_file()
