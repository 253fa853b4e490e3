"""The stage of an INT8, FP8 or NVFP4 build: rows to calibrate on, ranges, and what stays out so that a target holds.

    load samples -> calibrate (or find it in the cache) -> measure the first and the last site
                                                         | measure every site -> mix precisions

The latter where the selection has a target.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy.artifact import cache, store
from mlpdeploy.engine.backend import backends
from mlpdeploy.errors import ArtifactError, InputError
from mlpdeploy.network.source import Source
from mlpdeploy.progress import Stages
from mlpdeploy.selection import Selection
from mlpdeploy.selection.choice import NEEDS_CALIBRATION
from mlpdeploy.system import files

if TYPE_CHECKING:
    import numpy as np

    from mlpdeploy.evidence.proof.samples import Samples
    from mlpdeploy.evidence.proof.sensitivity import Sensitivity
    from mlpdeploy.graph.quantisation.sites import Quantisation
    from mlpdeploy.graph.rewrite import Rewritten
    from mlpdeploy.stages import Compiled


@dataclass(frozen=True)
class Calibration:
    """A calibration, and a few of its `rows` (n, ...) by input name, on which the engine is verified.

    `curve` and `ranked` where precisions were mixed: accuracy by number of sites kept out, and the sites by what they
    cost alone. `warning` goes into every output.
    """

    quantisation: Quantisation
    rows: Mapping[str, np.ndarray] = field(default_factory=dict)
    curve: tuple[dict[str, Any], ...] = ()
    ranked: tuple[dict[str, Any], ...] = ()
    warning: str | None = None

    def save(self, folder: Path, title: str) -> None:
        """Write quantisation.json and rows.npz, and the picture of the curve where there is one."""
        import numpy as np

        from mlpdeploy.evidence.report.charts import standalone
        from mlpdeploy.evidence.report.charts_quantised import tradeoff

        document: dict[str, Any] = {"quantisation": self.quantisation.to_json()}
        document |= {"curve": self.curve, "ranked": self.ranked, "warning": self.warning}
        text = json.dumps(document, indent=2, allow_nan=False) + "\n"
        (folder / store.QUANTISATION).write_text(text, encoding="utf-8")
        np.savez_compressed(folder / store.ROWS, **self.rows)  # type: ignore[arg-type]
        if chart := tradeoff(self.curve, self.quantisation.precision):
            heading = f"{title}: what is in {self.quantisation.precision.upper()}, and what it costs"
            (folder / store.CURVE).write_text(standalone(chart, heading), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Calibration:
        """That of an artifact. Raises ArtifactError where its file cannot be used."""
        import numpy as np

        from mlpdeploy.graph.quantisation.sites import Quantisation

        path = folder / store.QUANTISATION
        try:
            document = files.read_json(path)
            quantisation = Quantisation.from_json(document.pop("quantisation"))
            curve, ranked = (tuple(document.pop(name)) for name in ("curve", "ranked"))
            with np.load(folder / store.ROWS, allow_pickle=False) as file:
                rows = {name: file[name] for name in file.files}
            return cls(quantisation, rows, curve, ranked, document.pop("warning"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{path} cannot be read ({error}): build it again with --force") from error

    def summary(self) -> dict[str, Any]:
        """What the manifest says about it."""
        found = self.quantisation
        return {
            "precision": found.precision,
            "calibrator": found.calibrator,
            "sqnr_db": dict(found.sqnr_db),
            "data": found.data,
            "rows": found.rows,
            "random": found.random,
            "warning": self.warning,
            "equalised": len(found.equalised),
            "kept": dict(found.kept),
            "curve": list(self.curve),
            "ranked": list(self.ranked),
        }


def calibrate_network(rewritten: Rewritten, source: Source, selection: Selection, stages: Stages) -> Calibration:
    """Calibrate the rewritten network on what the selection names. Raises InputError where that cannot be used."""
    samples = _samples(source, selection, stages)
    if selection.max_drop is not None and samples.labels is None:
        raise InputError(
            f"--max-drop needs labels, and {selection.calibration} has none: name its sub-folders by class, put "
            "'labels' into the .npz, or give --min-sqnr"
        )
    quantisation = _calibrated(rewritten, samples, selection, stages)
    found = Calibration(quantisation, _few(samples), warning=samples.warning())
    if selection.min_sqnr is None and selection.max_drop is None:
        return replace(found, quantisation=_without_loud_ends(rewritten, quantisation, samples, stages))
    from mlpdeploy.evidence.proof.sensitivity import Target, mix

    balanced, ranked = _each_site(rewritten, quantisation, samples, stages)
    with stages("mix precisions"):
        target = Target(selection.max_drop, selection.min_sqnr)
        quantisation, curve = mix(balanced, quantisation, _judge(balanced, samples), ranked, target, stages.step)
    rows = tuple(row.to_json() for row in ranked)
    return replace(found, quantisation=quantisation, curve=tuple(asdict(point) for point in curve), ranked=rows)


def _without_loud_ends(
    rewritten: Rewritten, quantisation: Quantisation, samples: Samples, stages: Stages
) -> Quantisation:
    """The first and the last site stay out of 8 bits where one of them costs more than all between them."""
    from mlpdeploy.evidence.proof.sensitivity import loud_ends
    from mlpdeploy.graph.quantisation.equalise import equalise
    from mlpdeploy.graph.quantisation.sites import products

    with stages("measure both ends"):
        balanced = equalise(rewritten, quantisation.equalised)
        kept = loud_ends(balanced, quantisation, _judge(balanced, samples, ALONE))
        known = products(balanced.module)
        for node, reason in kept.items():
            stages.say(f"{known[node].module} stays out of {quantisation.precision.upper()}: {reason}")
    return replace(quantisation, kept={**quantisation.kept, **kept})


def _each_site(
    rewritten: Rewritten, quantisation: Quantisation, samples: Samples, stages: Stages
) -> tuple[Rewritten, tuple[Sensitivity, ...]]:
    """The equalised graph, and what each of its sites costs alone."""
    from mlpdeploy.evidence.proof.sensitivity import sensitivities
    from mlpdeploy.graph.quantisation.equalise import equalise

    with stages("sensitivity"):
        balanced = equalise(rewritten, quantisation.equalised)
        ranked = sensitivities(balanced, quantisation, _judge(balanced, samples, ALONE), stages.step)
    if not ranked:
        taken = quantisation.precision.upper()
        raise InputError(f"no product of this network can take {taken}, so there is none to rank: build it in FP16")
    return balanced, ranked


ALONE = 16
"""Rows on which each site is measured on its own; the mixed networks are measured on all."""


def measure_sites(rewritten: Rewritten, source: Source, selection: Selection, stages: Stages) -> Calibration:
    """The calibration, and what each site costs alone."""
    samples = _samples(source, selection, stages)
    quantisation = _calibrated(rewritten, samples, selection, stages)
    _, ranked = _each_site(rewritten, quantisation, samples, stages)
    return Calibration(quantisation, ranked=tuple(row.to_json() for row in ranked), warning=samples.warning())


def paid_off(compiled: Compiled, selection: Selection, stages: Stages) -> dict[str, Any]:
    """The latency of 8 bits beside FP16 and FP32, on every backend that runs here (see `evidence.latency.worth`)."""
    from mlpdeploy.engine.onnx.emit import Emitted, emit
    from mlpdeploy.evidence.latency.worth import worth
    from mlpdeploy.graph.precision.plan import plan
    from mlpdeploy.graph.precision.typed import apply

    assert compiled.calibration is not None
    found, plain = compiled.calibration, compiled.rewritten
    rows, quantisation = found.rows, found.quantisation

    def make(precision: str, beside: str | None) -> Emitted:
        if beside is None:
            return emit(apply(plain, plan(plain, precision, samples=rows)))
        planned = plan(compiled.balanced, precision, samples=rows, quantisation=quantisation, beside=beside)
        return emit(apply(compiled.balanced, planned))

    with stages("worth it?"):
        measured = worth(make, backends(), rows, selection.request(), stages)
    for verdict in measured["verdicts"]:
        stages.say(verdict)
    return measured


def calibrated_on(selection: Selection) -> str:
    """What the calibration of a selection reads. Raises InputError where that is nothing, or nothing that is there."""
    from mlpdeploy.evidence.proof.samples import require

    if selection.calibration is None:
        raise InputError(f"{selection.precision.upper()} {NEEDS_CALIBRATION}")
    require(selection.calibration, "--calibration")
    return selection.calibration


def _samples(source: Source, selection: Selection, stages: Stages) -> Samples:
    from mlpdeploy.evidence.proof.samples import read_samples

    given = calibrated_on(selection)
    samples = read_samples(given, "--calibration", source, selection.seed, selection.limit, stages)
    if (warning := samples.warning()) is not None:
        stages.say(f"warning: {warning}")
    return samples


def _few(samples: Samples) -> dict[str, np.ndarray]:
    """The rows that go into the artifact."""
    from mlpdeploy.evidence.proof.reference import DISTINCT_ROWS
    from mlpdeploy.graph.quantisation.calibrate import some

    return dict(some(samples.arrays, DISTINCT_ROWS))


def _judge(balanced: Rewritten, samples: Samples, rows: int | None = None) -> Any:
    from mlpdeploy.evidence.proof.sensitivity import Judge
    from mlpdeploy.graph.quantisation.calibrate import some

    arrays: Mapping[str, Any] = dict(samples.arrays)
    if samples.labels is not None:
        arrays = {**arrays, "": samples.labels}
    taken = some(arrays, rows or samples.count)
    labels = taken.get("")
    return Judge.of(balanced, {name: values for name, values in taken.items() if name}, labels)


def _unfused(rewritten: Rewritten, selection: Selection) -> dict[str, str]:
    """The sites that stay out of FP8 by what the selection's engine makes of codes, with the reason."""
    from mlpdeploy.graph.quantisation.unfused import unfused

    if selection.precision != "fp8" or backends()[selection.backend].fuses_codes:
        return {}
    return unfused(rewritten.module)


def _calibrated(rewritten: Rewritten, samples: Samples, selection: Selection, stages: Stages) -> Quantisation:
    """The calibration, from the cache where weights, graph, data, calibrator and our own code are the same."""
    from mlpdeploy.graph.quantisation.calibrate import calibrate
    from mlpdeploy.graph.quantisation.sites import Quantisation

    kept = _unfused(rewritten, selection)
    parts = (cache.fingerprint(rewritten), samples.digest(), selection.calibrator, selection.precision, cache.sources())
    key = hashlib.sha256("\0".join((*parts, *kept)).encode()).hexdigest()
    path = selection.out / selection.folder_name / "calibration" / f"{key[:32]}.json"
    with stages("calibrate"):
        try:
            found = Quantisation.from_json(files.read_json(path))
            stages.say(f"calibration found in {path}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            found = calibrate(
                rewritten, samples.arrays, selection.calibrator, selection.precision, stages.step, kept=kept
            )
            store.place(path, json.dumps(found.to_json(), allow_nan=False) + "\n")
    if kept:
        stages.say(f"{len(kept)} products stay out of {selection.precision.upper()}, where FP16 moves fewer bytes")
    shown = ", ".join(f"{name} {db:.1f} dB" for name, db in found.sqnr_db.items())
    stages.say(f"calibrator {found.calibrator} ({shown}); {len(found.equalised)} operations equalised")
    return replace(found, data=samples.text, rows=samples.count, random=samples.random)
