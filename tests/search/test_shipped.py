"""The decisions that come with mlpdeploy: they count for the networks as they are traced now."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.search import shipped
from benchmarks.tables import RESULTS
from mlpdeploy import stages
from mlpdeploy.artifact import decisions
from mlpdeploy.artifact.decisions import Case, Decision
from mlpdeploy.engine.backend import backends
from mlpdeploy.progress import Stages
from mlpdeploy.selection import Selection
from mlpdeploy.selection.checks import rule_names

MEASURED = json.loads((RESULTS / "search.json").read_text(encoding="utf-8"))
ENTRIES = decisions.read(decisions.SHIPPED)


def test_what_was_measured_is_shipped() -> None:
    assert ENTRIES and shipped(MEASURED["results"], ENTRIES) == ENTRIES


@pytest.mark.slow
@pytest.mark.skipif(
    torch.__version__.partition("+")[0] != MEASURED["machine"]["versions"]["torch"],
    reason="another PyTorch may trace other operations",
)
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: str(entry["decision"]["network"]))
def test_a_build_of_the_network_finds_it_and_what_lies_in_its_folder_counts_more(
    entry: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    case, decision = Case(**entry["case"]), Decision.from_json(entry["decision"])  # type: ignore[arg-type]
    selection = Selection(decision.network, case.precision, case.backend, str(decision.batch), out=tmp_path)
    traced = stages.trace_network(stages.load(selection, Stages()), Stages(), selection.profile)
    here = decisions.case_of(selection, backends()[case.backend], decisions.structure(traced))
    assert replace(here, versions=case.versions, device=case.device) == case
    assert decisions.found(selection, case) == (decision, decisions.SHIPPED)
    chosen = decisions.applied(selection, decision)
    assert {*decision.kept(decisions.LEFT_OUT)} == {*chosen.disabled_rules} <= {*rule_names()}
    own = replace(decision, trials=())
    decisions.remember(tmp_path, case, own)
    assert decisions.remembered(selection, case) == own
