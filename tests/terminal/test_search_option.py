"""`mlpdeploy build --search`: found once, kept, used by every later build, and proved like any other engine."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mlpdeploy
from mlpdeploy.artifact import decisions, store
from mlpdeploy.artifact.decisions import FILE, KEPT, LEFT_OUT, Case, Decision, Trial
from mlpdeploy.engine.backend import backends
from mlpdeploy.errors import InputError
from mlpdeploy.search import SECONDS, judging, variants
from mlpdeploy.terminal.argv import with_seconds
from tests.terminal.conftest import Said

NETWORK = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.tokens, self.channels = nn.LayerNorm(16), nn.Linear(9, 9), nn.Linear(16, 16)
        self.scale = nn.Parameter(torch.rand(16) + 0.5)

    def forward(self, x):
        x = x + self.scale * self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + nn.functional.gelu(self.channels(x * self.scale))

def net():
    return nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.Flatten(2), Tokens(), Block(), Block(), nn.Linear(16, 5))

class Tokens(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)
"""
SMALL = ("search_nets:net", "--input-shape", "3,12,12", "--batch", "1:2:3", "--precision", "fp32")
ORT = (*SMALL, "--backend", "onnxruntime")
FOLDER = Path("artifacts/search_nets-net/fp32/onnxruntime")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "search_nets.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("search_nets", None)


@pytest.fixture
def run(said: Said) -> Any:
    """Run a command; its document with --json, else what it says on both streams."""

    def run(*arguments: object, code: int = 0) -> Any:
        out, err = said(*arguments, code=code)
        return json.loads(out) if "--json" in arguments else SimpleNamespace(out=out, err=err)

    return run


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates without fold_affine are faster, and all others slower, as if it had been measured."""

    def decide(self: object, incumbent: Any, candidate: Any, *_: object) -> judging.Judgement:
        better = "fold_affine" in {*candidate.selection.disabled_rules} - {*incumbent.selection.disabled_rules}
        return judging.Judgement(KEPT if better else decisions.NO_BETTER, decisions.Ratio(0.9, None, 0.95), 10)

    monkeypatch.setattr(judging._Time, "decide", decide)
    monkeypatch.setattr(judging._Time, "glance", lambda *_: -0.1)


def rules(manifest: dict[str, Any]) -> dict[str, int]:
    return {rule["name"]: rule["fired"] for rule in manifest["rules"]}


@pytest.mark.slow
def test_what_is_found_is_kept_used_shown_and_proved(run: Any, quick: None) -> None:
    assert "fold_affine" in rules(run("build", *ORT, "--json")["manifest"])
    found = run("build", *ORT, "--search", "500", "--json")
    trials = {one["name"]: one for one in found["manifest"]["decided"]["decision"]["trials"]}
    assert trials["fold_affine"]["verdict"] == KEPT and trials["project_tokens"]["verdict"] == decisions.NO_BETTER
    assert not found["cached"] and "fold_affine" not in rules(found["manifest"])
    # What was asked for is as before: it is no option of the user's.
    assert found["manifest"]["selection"]["disabled_rules"] == []

    # Later builds take it without being asked, and nothing is searched twice.
    assert run("build", *ORT, "--json")["cached"]
    assert run("build", *ORT, "--search", "500", "--json")["cached"]
    assert "fold_affine" not in rules(run("build", *ORT, "--force", "--json")["manifest"])
    # Who asks for the rule has it.
    assert "fold_affine" in rules(run("build", *ORT, "--enable-rule", "fold_affine", "--json")["manifest"])
    run("build", *ORT)

    assert run("verify", *ORT, "--json")["passed"]
    assert run("verify", FOLDER, "--json")["passed"]
    shown = run("inspect", FOLDER).out
    assert "What a search tried" in shown and "0.900 (below 0.950)" in shown
    assert f" s on {found['manifest']['decided']['decision']['created'][:10]}, " in " ".join(shown.split())
    assert all(len(line) <= 80 for line in shown.splitlines()[2:])
    run("report", FOLDER)
    assert "What a search tried" in (FOLDER / "report.html").read_text()
    assert "| `fold_affine` | left out | 0.900 (below 0.950) | kept |" in (FOLDER / "report.md").read_text()

    # An engine is verified as it was built, whatever is decided now; and a build then makes another one.
    (Path("artifacts") / FILE).unlink()
    assert run("verify", *ORT, "--json")["passed"]
    again = run("build", *ORT, "--json")
    assert not again["cached"] and "fold_affine" in rules(again["manifest"])


def kept_elsewhere(run: Any, *names: str) -> None:
    """Decisions for SMALL, in a file that came from somewhere."""
    case = Case(**run("build", *ORT, "--json")["manifest"]["decided"]["case"])
    trials = tuple(Trial(name, LEFT_OUT, KEPT) for name in names)
    decisions.remember(Path("artifacts"), case, Decision("search_nets:net", "2026-01-01", "time", 2, 1.0, trials))


@pytest.mark.slow
def test_a_file_of_decisions_that_was_brought_counts(run: Any) -> None:
    kept_elsewhere(run, "project_tokens", "flatten_grids", "a_rule_of_another_version")
    said = run("build", *ORT)
    found = store.open_artifact(FOLDER).manifest
    assert "decided by the search of 2026-01-01 in artifacts/decisions.json: project_tokens left out, " in said.err
    assert "project_tokens" not in rules(found)
    assert "flatten_grids" not in {form["name"] for form in found["forms"]}
    assert run("verify", *ORT, "--json")["passed"]


@pytest.mark.slow
def test_what_is_found_beside_a_rule_that_was_chosen_by_hand_is_searched_for_again_without_it(
    run: Any, quick: None
) -> None:
    def tried(*words: str) -> set[str]:
        found = run("build", *ORT, "--search", "500", *words, "--json")["manifest"]["decided"]["decision"]
        return {one["name"] for one in found["trials"]}

    beside = ("--disable-rule", "fold_affine")
    assert "fold_affine" not in tried(*beside)
    assert run("build", *ORT, *beside, "--search", "500", "--json")["cached"]
    assert run("build", *ORT, "--json")["manifest"]["decided"]["decision"] is None
    assert "fold_affine" in tried()
    assert "fold_affine" not in tried(*beside)  # what was found for this selection is still there
    assert len(json.loads((Path("artifacts") / FILE).read_text())["decisions"]) == 2


@pytest.mark.slow
def test_a_variant_that_computes_something_else_is_refused_before_it_is_timed(
    run: Any, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite = variants.rewrite_network

    def wrong(traced: Any, selection: Any, stages: Any) -> Any:
        rewritten = rewrite(traced, selection, stages)
        if "fold_affine" in selection.disabled_rules:
            (output,) = rewritten.module.graph.find_nodes(op="output")
            given = output.args[0][0]
            with rewritten.module.graph.inserting_before(output):
                other = rewritten.module.graph.call_function(torch.ops.aten.mul.Tensor, (given, 1.001))
            other.meta.update(given.meta)
            given.replace_all_uses_with(other, delete_user_cb=lambda user: user is not other)
            rewritten.module.recompile()
        return rewritten

    monkeypatch.setattr(variants, "rewrite_network", wrong)
    found = run("build", *ORT, "--search", "500", "--json")["manifest"]
    (trial,) = (one for one in found["decided"]["decision"]["trials"] if one["name"] == "fold_affine")
    assert trial["verdict"] == decisions.REFUSED and trial["why"].startswith("rewritten graph, float64: ")
    assert "fold_affine" in rules(found)
    assert "refused: rewritten graph, float64: " in " ".join(run("inspect", FOLDER).out.split())


@pytest.mark.slow
def test_a_damaged_file_of_decisions_is_one_line_and_leaves_the_engine(run: Any) -> None:
    before = run("build", *ORT, "--json")["manifest"]
    (Path("artifacts") / FILE).write_text("{")
    said = run("build", *ORT, code=2).err.strip().splitlines()[-1]
    assert said.startswith(f"error: artifacts/{FILE} cannot be read") and "remove it, and search again" in said
    assert store.open_artifact(FOLDER).manifest == before
    run("verify", *ORT)


@pytest.mark.slow
def test_a_real_search_ends_with_an_engine_that_passes(run: Any) -> None:
    found = run("build", *ORT, "--search", "2", "--json")["manifest"]
    decision = found["decided"]["decision"]
    assert decision["judged_by"] == "time" and decision["batch"] == 2 and decision["trials"]
    assert "seconds" in found and found["seconds"]["search"] > 0
    assert run("verify", *ORT, "--quick", "--json")["passed"]


@pytest.mark.slow
def test_where_engines_cannot_run_their_structure_decides(run: Any) -> None:
    backend = backends()["tensorrt-rtx"]
    if (reason := backend.available()) is not None:
        pytest.skip(reason)
    if backend.executable() is None:
        pytest.skip("its engines run here")
    found = run("build", *SMALL, "--backend", "tensorrt-rtx", "--search", "500", "--json")["manifest"]
    decision = found["decided"]["decision"]
    assert decision["judged_by"] == "structure" and found["decided"]["case"]["device"] == decisions.NO_DEVICE
    judged = [one for one in decision["trials"] if one["verdict"] in (KEPT, decisions.NO_BETTER)]
    assert judged
    for trial in judged:
        pairs = [pair.split()[1::2] for pair in trial["why"].split(", ") if " -> " in pair]
        fewer = [int(after) < int(before) for before, after in pairs]
        assert (trial["verdict"] == KEPT) == (bool(fewer) and all(fewer)), trial
    assert run("verify", *SMALL, "--backend", "tensorrt-rtx", "--json")["passed"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--search", "0"), "--search 0: give seconds above 0"),
        (("--search", "-3"), "--search -3: give seconds above 0"),
        (("--search=nan",), "--search nan: give seconds above 0"),
        (("--search", "inf"), "--search inf: give seconds above 0"),
        (("--search=soon",), "Invalid value for '--search'"),
        (("--search", "soon"), "unexpected extra argument"),
        (("--tactics", "0"), "--tactics 0: give seconds above 0"),
        (
            ("--tactics",),
            "backend onnxruntime has no build routes, which are those of --backend tensorrt: drop --tactics",
        ),
        (
            ("--build-route", "-a=b"),
            "onnxruntime has no build routes, which are those of --backend tensorrt: drop --build",
        ),
        (("--build-route", "-a=[b|c]"), "build route '-a=[b|c]': give words such as -copy_ppg=off"),
        (("--build-route=-a=b -a=c",), "build route: -a stands there twice"),
    ],
)
def test_seconds_that_are_none_are_one_line(run: Any, words: tuple[str, ...], line: str) -> None:
    error = run("build", *ORT, *words, code=2).err.strip()
    assert line in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["build", "--search", "mixer_s32"], ["build", "--search", f"{SECONDS:g}", "mixer_s32"]),
        (["build", "mixer_s32", "--search"], ["build", "mixer_s32", "--search", f"{SECONDS:g}"]),
        (["build", "--search", "30", "mixer_s32"], ["build", "--search", "30", "mixer_s32"]),
        (["build", "--search=30", "mixer_s32"], ["build", "--search=30", "mixer_s32"]),
        (["build", "--search", "--json", "x"], ["build", "--search", f"{SECONDS:g}", "--json", "x"]),
        (["build", "--tactics", "x", "--search"], ["build", "--tactics", "3600", "x", "--search", f"{SECONDS:g}"]),
    ],
)
def test_seconds_may_be_left_out(words: list[str], expected: list[str]) -> None:
    assert with_seconds(words) == expected


@pytest.mark.parametrize("seconds", [0.0, -3.0, float("nan"), float("inf")])
def test_in_python_seconds_that_are_none_are_refused_too(seconds: float) -> None:
    with pytest.raises(InputError, match="give seconds above 0"):
        mlpdeploy.build(mlpdeploy.Selection("mixer_s32", "fp32", "onnxruntime"), search=seconds)


@pytest.mark.slow
def test_in_python(here: Path, quick: None) -> None:
    import search_nets

    options = {"precision": "fp32", "backend": "onnxruntime", "batch": "1:2:3", "search": 500, "out": here}
    engine = mlpdeploy.compile(search_nets.net().eval(), torch.zeros(1, 3, 12, 12), **options)
    assert (here / FILE).exists() and engine.verify().passed
