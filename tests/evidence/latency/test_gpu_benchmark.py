"""The script for GPUs, dry: every path with tiny sizes, on a machine that lacks what a GPU machine may lack."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import choices, fused, machine, report, timer
from benchmarks.gpu.__main__ import Book, Session, jobs
from benchmarks.gpu.networks import NAMES, TINY, Network
from mlpdeploy.evidence.latency.timing import Timings
from mlpdeploy.selection.choice import NetworkChoice

pytest.importorskip("triton", reason="Triton, which the kernel is written in, is not installed")

WITHOUT = """
import sys
class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {lacking!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Lacking())
from benchmarks.gpu.__main__ import main
for arguments in {runs!r}:
    code = main(arguments)
    print("code", code, flush=True)
sys.exit(code)
"""
LACKING = ("typer", "rich", "onnxscript", "onnx_ir", "polygraphy", "openvino", "tensorrt_rtx")


def run(*runs: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The script, run as often as there are arguments for it."""
    code = WITHOUT.format(lacking=LACKING, runs=[list(arguments) for arguments in runs])
    root = Path(__file__).parents[3]
    return subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)


@pytest.mark.slow
def test_a_dry_run_takes_every_path_and_goes_on_where_it_ended(tmp_path: Path) -> None:
    dry = ("--dry-run", "--seconds", "0.1", "--out", str(tmp_path))
    done = run((*dry, "--parts", "correctness,kernel"), dry)
    assert done.returncode == 0, done.stderr
    first, second, _ = done.stdout.split("code 0\n")
    assert first.count("kernel ") == 2 and first.count("correctness ") == 2
    assert "network tiny" in second and "kernel " not in second and "correctness " not in second
    document = json.loads((tmp_path / "dry-run.json").read_text())
    names = [name.split(" ")[0] for name in document["results"]]
    once = {"roofline": 1, "network": 1, "rules": 1, "epilogues": 2, "choices": 2}
    assert {name: names.count(name) for name in names} == {"correctness": 2, "kernel": 2, **once}
    for name, row in document["results"].items():
        assert "failed" not in row, (name, row)
    network = document["results"]["network tiny batch 2"]
    assert set(network["times"]) == {"eager, launched", "ours", *report.OTHERS}
    changed = document["results"]["rules tiny batch 2"]["times"]
    assert {"ours", "without project_segments", "with reorder_channels", "with lay_maps_last"} <= set(changed)
    fused = document["results"]["epilogues tiny batch 2"]
    assert set(fused["times"]) == {"ours", "epilogues"}
    mixer = document["results"]["epilogues tiny_mixer batch 2"]
    assert set(mixer["times"]) == {"ours", "activated", "token MLPs", "token MLPs, activated"}
    assert max(error for row in (network, fused, mixer) for error in row["errors"].values()) < 1e-5
    text = (tmp_path / "dry-run.md").read_text()
    assert "tiny height batch 2" in text and text.count(report.NOT_YET) >= 9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dry-run.json", "dry-run.md"]


@pytest.mark.slow
def test_without_a_gpu_it_says_so() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = run(())
    assert done.returncode == 3 and done.stderr.startswith("no NVIDIA GPU") and done.stdout == "code 3\n"
    assert run(("--parts", "everything")).returncode == 2


def test_a_row_that_fails_costs_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = Book(tmp_path, "cpu", True, {}, False)

    def broken() -> dict[str, Any]:
        raise RuntimeError("the GPU\nfell off")

    book.add("kernel a batch 1", broken)
    book.add("correctness b", lambda: {"errors": {"float16": {"error": 1.0, "allowed": 0.1}}, "passed": False})
    for part in ("network", "epilogues", "engine", "pipeline"):
        book.add(f"{part} c", broken)
    book.add("kernel nan", lambda: {"ms": float("nan")})
    document = json.loads((tmp_path / "dry-run.json").read_text())
    assert document["results"]["kernel a batch 1"]["failed"] == "RuntimeError: the GPU fell off"
    text = (tmp_path / "dry-run.md").read_text()
    assert text.count("the GPU fell off") == 5 and "float16 1.0e+00 | failed" in text
    assert "kernel a batch 1" in Book(tmp_path, "cpu", True, {}, False)
    assert "kernel a batch 1" not in Book(tmp_path, "cpu", True, {"seconds": 9}, False)
    assert "kernel a batch 1" not in Book(tmp_path, "cpu", True, {}, True)


def test_rows_tell_the_commit_that_measured_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, commit in enumerate(("abc1234", "abc1234", None, "def5678")):
        monkeypatch.setattr(machine, "commit", lambda commit=commit: commit)
        Book(tmp_path, "cpu", True, {}, False).add(f"network {number}", lambda: {"failed": "it is a test"})
    text = (tmp_path / "dry-run.md").read_text()
    assert "; at commit abc1234, def5678. Times are medians" in text
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.commit() is None


def rows() -> dict[str, Any]:
    """One projection that memory bounds, one that arithmetic bounds, and two networks."""

    def times(**seconds: float) -> dict[str, Any]:
        taken = Timings({name: np.full(9, value) for name, value in seconds.items()}, dict.fromkeys(seconds, 1), 0)
        return timer.row(taken, next(iter(seconds)))

    kernel = {"operation_uses": "the kernel"}
    return {
        "roofline": {"bytes_per_second": 1e12, "operations_per_second": 1e15},
        "kernel a batch 32": {
            **kernel, "bytes": 1e6, "operations": 1e8,
            "times": times(kernel=2e-6, eager=6e-6, compile=4e-6, gemm=1.8e-6),
        },
        "kernel b batch 128": {
            **kernel, "bytes": 1e6, "operations": 1e10,
            "times": times(kernel=2e-5, eager=6e-5, compile=2e-5, gemm=1e-5),
        },
        "network vip_s7 batch 128": {
            "times": times(ours=1e-2, **dict(zip(report.OTHERS, (3e-2, 2.8e-2, 1.4e-2, 1.2e-2), strict=True))),
            "errors": {"eager": None, "compile": 1e-3, "ours": 1e-3},
            "images_per_second": {"ours": 12800.0},
        },
        "rules vip_s7 batch 128": {
            "times": times(ours=1e-2, **{"without a": 9e-3, "with b": 2e-2, "searched": 9e-3}),
            "searched": ["without a"],
        },
        "epilogues vip_s7 batch 128": {
            "times": times(ours=1e-2, epilogues=8e-3), "errors": {"ours": 1e-3, "epilogues": 2e-3},
        },
        "epilogues mixer_b16 batch 8": {
            "times": times(ours=1e-3, **{"activated": 9e-4, "token MLPs": 8e-4}),
            "errors": {"ours": 1e-3, "activated": 2e-3, "token MLPs": 3e-3},
        },
        "epilogues gmixer_24 batch 1": {"nothing": "none of the rules fires"},
    }  # fmt: skip


def test_the_report_names_what_was_found_of_each_aim() -> None:
    found = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1] for line in report.claims(rows())}
    gemm, compiled, vip_s7, vip_s14, *_, best = list(found.values())[2:]
    assert gemm == "2.00 at worst (b batch 128), 2 measured |"
    assert compiled == "2.00 at worst (a batch 32), 1 measured |"
    assert vip_s7 == "1.40 |" and vip_s14 == f"{report.NOT_YET} |"
    (line,) = [line for line in report.kernels(rows()) if "a batch 32" in line]
    assert line == "| a batch 32 | 2 | 1.11 | 3.00 | 2.00 | 1 (memory) | the kernel |"
    assert best == "1.40; 1.40 at worst (vip_s7 batch 128), 1 measured |"
    shown = "| vip_s7 batch 128 | 10.000 | 12800 | 3.00 | 2.80 | 1.40 | 1.20 | not finite / 1e-03 / 1e-03 |"
    assert report.networks(rows())[2] == shown
    assert report.rules(rows())[2:] == [
        "| vip_s7 batch 128 | without a | 0.90 |",
        "| vip_s7 batch 128 | with b | 2.00 |",
        "| vip_s7 batch 128 | searched (without a) | 0.90 |",
    ]
    assert report.epilogues(rows())[2:] == [
        "| vip_s7 batch 128 | 10.000 | epilogues | 0.80 | 1e-03 / 2e-03 |",
        "| mixer_b16 batch 8 | 1.000 | activated | 0.90 | 1e-03 / 2e-03 |",
        "| mixer_b16 batch 8 | 1.000 | token MLPs | 0.80 | 1e-03 / 3e-03 |",
        "| gmixer_24 batch 1 |  | none of the rules fires |  |  |",
    ]


def test_what_the_kernels_of_mlps_are_worth_is_measured_at_every_batch() -> None:
    """Of the networks of products over tokens, whose rows come behind those of each network at the largest batch."""
    asked: list[str] = []

    def wanted(part: str, name: str) -> bool:
        asked.append(name)
        return False

    asked += [name for _, name, _, _ in jobs(Session("cpu", False, 1.0, wanted, lambda: 1.0))]
    for name in ("mixer_b16", "mixer_s32", "resmlp_24", "gmlp_s16", "gmixer_24"):
        rows = [f"epilogues {name} batch {batch}" for batch in (128, 8, 1)]
        assert [one for one in asked if one in rows] == rows
        assert name not in NAMES or asked.index(rows[0]) > asked.index(f"network {name} batch 128")


def test_choices_are_measured_in_every_form_and_put_beside_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned: list[dict[str, int]] = []
    tuning: Any = choices.kernels.load("common.tuning")
    monkeypatch.setattr(choices.networks, "tune", lambda network, batch, device: tuned.append(network.rules))
    assert choices.measure(fused.TINY_MIXER, 2, "cpu") == {"nothing": "there is no GPU"}
    assert [("activate_projections" in one, "fuse_token_mlps" in one) for one in tuned] == [
        (False, False), (True, False), (True, True),
    ]  # fmt: skip
    monkeypatch.setattr(choices.networks, "load", lambda name, device, rules: Network("", *[None] * 2, {}, ()))
    monkeypatch.setattr(choices, "RULES", ((),))
    monkeypatch.setattr(choices.kernels.load("common.launching"), "compute_capability", lambda device: 90)
    monkeypatch.setattr(tuning, "ship", lambda sm: Path(f"sm{sm}/measured.json"))
    monkeypatch.setattr(tuning, "shipped", lambda sm, path: {"a": "library"})
    assert choices.measure("any", 2, "cuda") == {"file": "measured.json", "known": 1}


@pytest.mark.parametrize(
    ("name", "fired"),
    [(fused.TINY_MIXER, {"activated", "token MLPs", "token MLPs, activated"}), (TINY, {"epilogues"})],
)
def test_a_network_is_measured_with_the_rules_that_fire_in_it(name: str, fired: set[str]) -> None:
    found = fused.contenders(name, "cpu")
    assert found.keys() == {"ours", *fired}
    graphs = {str(network.ours.graph) for network in found.values()}
    assert len(graphs) == len(found)
    if name is fused.TINY_MIXER:
        both = [str(node.target) for node in found["token MLPs, activated"].ours.graph.nodes]
        assert both.count("mlpdeploy.token_mlp.default") == 2
        assert both.count("mlpdeploy.segment_grouped_projection_epilogue.default") == 2


def test_a_network_that_no_rule_changes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "contenders", lambda name, device: {"ours": None})
    assert fused.prepare("gmixer_24", 1, "cpu", True, 0.1)() == {"nothing": "none of the rules fires"}


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
