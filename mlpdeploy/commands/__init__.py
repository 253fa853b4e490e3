"""What the commands do behind and beside `build` and `verify` (see `pipeline`): measure, look, and tell what there is.

recipe -> trace -> check -> rewrite -> calibrate -> one site at a time    `sensitivity`: what 8 bits cost
build -> rivals -> time in sittings -> roofline, layers                   `bench`, in benching.py
baseline -> build -> verify -> time in pairs -> judge the gates           `regress`, in gating.py
engine, typed graph, PyTorch -> images in batches -> test                 `evaluate`, in evaluating.py
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy.artifact import store
from mlpdeploy.artifact.lookup import find_artifact
from mlpdeploy.calibration import calibrated_on, measure_sites
from mlpdeploy.engine.backend import pick
from mlpdeploy.errors import InputError
from mlpdeploy.progress import Listener, Stages
from mlpdeploy.selection import OUT, Selection
from mlpdeploy.stages import check, load, rewrite_network, trace_network
from mlpdeploy.system.results import require_room
from mlpdeploy.system.turns import in_turn
from mlpdeploy.zoo.recipe import recipes

if TYPE_CHECKING:
    from mlpdeploy.evidence.documents.bench import Bench
    from mlpdeploy.evidence.documents.evaluation import Evaluation
    from mlpdeploy.evidence.documents.history import History
    from mlpdeploy.evidence.documents.regress import Regress


@in_turn
def sensitivity(selection: Selection, *, progress: Listener | None = None) -> tuple[dict[str, Any], Path]:
    """What 8 bits cost a network, site by site, as JSON values: a row each, the most harmful first; and the picture.

    Calibrates on `selection.calibration`. Raises InputError where that cannot be used.
    """
    from mlpdeploy.evidence.report.charts import standalone
    from mlpdeploy.evidence.report.charts_quantised import noise

    if not selection.quantised:
        raise InputError(f"sensitivity is that of int8 or fp8; {selection.precision} has no codes to calibrate")
    calibrated_on(selection)
    stages = Stages(progress)
    selection = selection.with_backend(pick(selection.backend, selection.precision).name)
    source = load(selection, stages).with_images(selection)
    traced = trace_network(source, stages)
    source = source.with_outputs(traced.outputs)
    check(source, traced, selection, stages)
    rewritten = rewrite_network(traced, selection, stages)
    measured = measure_sites(rewritten, source, selection, stages)
    found = measured.quantisation
    picture = selection.out / selection.folder_name / f"sensitivity-{selection.precision}.svg"
    heading = f"{source.recipe.name}: what each module costs where it alone takes {selection.precision.upper()}"
    store.place(picture, standalone(noise(measured.ranked, selection.precision), heading))
    document = {
        "name": source.recipe.name,
        "weights": selection.weights(),
        "precision": selection.precision,
        "calibration": measured.summary(),
        "whole_sqnr_db": found.sqnr_db[found.calibrator],
        "sites": list(measured.ranked),
    }
    return document, picture


@in_turn
def bench(selection: Selection, **options: Any) -> Bench:
    """Time the engine of a selection beside its rivals (see `benching.bench`), and add the run to the history."""
    from mlpdeploy.commands import benching

    require_room(_history(selection))
    found = benching.bench(selection, **options)
    _remember(selection, found.to_json(), Stages(options.get("progress")))
    return found


@in_turn
def regress(selection: Selection, reference: str | None = None, **options: Any) -> Regress:
    """Hold the engine of a selection against a baseline (see `gating.regress`), and add the run to the history."""
    from mlpdeploy.commands import gating

    require_room(_history(selection))
    found = gating.regress(selection, reference, **options)
    _remember(selection, found.to_json(), Stages(options.get("progress")))
    return found


def evaluate(selection: Selection, data: str | Path, **options: Any) -> Evaluation:
    """How often the engine of a selection is right on a folder of classes (see `evaluating.evaluate`)."""
    from mlpdeploy.commands import evaluating

    return evaluating.evaluate(selection, Path(data), **options)


def history(selection: Selection) -> History:
    """The runs of `bench` and `regress` of a network so far. Raises InputError where there are none."""
    from mlpdeploy.evidence.documents.history import read

    return read(_history(selection), selection.name)


def inspect(
    target: str, *, precision: str | None = None, backend: str | None = None, out: Path = OUT
) -> dict[str, Any]:
    """What is in an artifact: its manifest, where it lies, and its verification and evaluation where there are some.

    `target` is a path or the name of a network; where several of its artifacts fit, InputError lists them.
    """
    artifact = find_artifact(target, precision=precision, backend=backend, out=out)
    found = {name: store.attached(artifact, f"{name}.json") for name in ("verification", "evaluation")}
    return {"folder": str(artifact.folder), "manifest": artifact.manifest, **found}


def catalogue(pattern: str | None = None) -> list[dict[str, Any]]:
    """Every recipe, as JSON values; only those with `pattern` in their name, aliases or family, where one is given.

    Raises InputError, with the families there are, where none fits.
    """
    from dataclasses import asdict

    wanted = (pattern or "").lower()
    found = [recipe for recipe in recipes().values() if any(wanted in n for n in (*recipe.names, recipe.family))]
    if not found:
        families = ", ".join(dict.fromkeys(recipe.family for recipe in recipes().values()))
        raise InputError(f"no recipe or family has {pattern!r} in its name; the families are {families}")
    return [asdict(recipe) for recipe in found]


def doctor() -> dict[str, Any]:
    """What this machine has, which backends work on it, why others do not, and what to install."""
    from mlpdeploy.commands.examination import examine

    return examine()


def _history(selection: Selection) -> Path:
    from mlpdeploy.evidence.documents.history import FILE

    return selection.out / selection.folder_name / FILE


def _remember(selection: Selection, document: dict[str, Any], stages: Stages) -> None:
    """Add a run to the history; where that cannot be written, the run is not lost for it."""
    from mlpdeploy.evidence.documents.history import append, entry, revision_here

    try:
        append(_history(selection), entry(document, revision_here()))
    except InputError as error:
        stages.warn(str(error))
