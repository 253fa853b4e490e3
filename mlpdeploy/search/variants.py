"""What a search tries: one rule, form or build route other than by default, and the engine that comes of it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mlpdeploy.artifact.decisions import LEFT_OUT, PUT_IN, SET, Ratio, Trial
from mlpdeploy.calibration import calibrate_network
from mlpdeploy.engine import form
from mlpdeploy.engine.backend import Backend, Built
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.build_route import joined, settings
from mlpdeploy.errors import BuildError
from mlpdeploy.network.source import Source
from mlpdeploy.progress import Stages
from mlpdeploy.selection import Selection
from mlpdeploy.stages import Compiled, plan_network, rewrite_network

if TYPE_CHECKING:
    from mlpdeploy.engine.runner import Arrays
    from mlpdeploy.evidence.latency.contenders import Loadable
    from mlpdeploy.evidence.proof.ladder import Stage
    from mlpdeploy.evidence.proof.runs import Run
    from mlpdeploy.graph.precision.typed import Typed
    from mlpdeploy.graph.quantisation.sites import Quantisation
    from mlpdeploy.graph.rewrite import Rewritten
    from mlpdeploy.graph.tracing.trace import Traced


@dataclass(frozen=True)
class Change:
    """A rule or form that is left out, or put in, and at how many places it fires; or a word of a build route."""

    name: str
    change: str
    fired: int

    def __str__(self) -> str:
        return f"{self.name} {self.change}"

    def applied(self, selection: Selection) -> Selection:
        """The selection with it."""
        if self.change == SET:
            return replace(selection, route=joined(selection.route, self.name))
        if self.change == PUT_IN:
            return replace(selection, enabled_rules=(*selection.enabled_rules, self.name))
        return replace(selection, disabled_rules=(*selection.disabled_rules, self.name))

    def trial(self, verdict: str, ratio: Ratio | None = None, pairs: int = 0, why: str = "") -> Trial:
        """What came of it."""
        return Trial(self.name, self.change, verdict, ratio, pairs, why)


@dataclass(frozen=True)
class Variant:
    """A selection's engine in a folder of its own, what fired in the making, and the hash of its file."""

    selection: Selection
    engine: Loadable
    fired: Mapping[str, int]
    digest: str


class Unchanged(Exception):
    """A change that makes no other file."""


class Workshop:
    """Makes the engines of one traced network, each of which the network proves in float64.

    What a build route makes of the same graph only the engine shows: with one, it is run and proved too.
    """

    def __init__(self, traced: Traced, source: Source, selection: Selection, backend: Backend, folder: Path) -> None:
        self.traced, self.source, self.selection, self.backend, self.folder = traced, source, selection, backend, folder
        self.stages = Stages()
        self._made = 0
        self._proof: Callable[[Typed, Run], Stage] | None = None

    def make(self, selection: Selection, unlike: Variant | None = None) -> Variant:
        """The engine of a selection. Raises Unchanged where its file is that of `unlike`.

        Raises BuildError where the rewritten graph is not the network in float64, or the engine of a build route not
        within the budget of its precision, and what a build raises.
        """
        from mlpdeploy.engine.onnx.emit import emit
        from mlpdeploy.evidence.latency.contenders import Loadable
        from mlpdeploy.evidence.proof.ladder import PASSED

        rewritten = rewrite_network(self.traced, selection, self.stages)
        calibration = calibrate_network(rewritten, self.source, selection, self.stages) if selection.quantised else None
        compiled = plan_network(
            self.traced, rewritten, selection, self.stages, calibration, self.backend.beside(selection.precision)
        )
        emitted, request = emit(compiled.served), selection.request(batch=self._batch)
        digest = hashlib.sha256(
            f"{request.disabled}{request.route}\0".encode() + emitted.model.SerializeToString()
        ).hexdigest()
        if unlike is not None and digest == unlike.digest:
            raise Unchanged("it makes no other file")
        stage = self._exactly(compiled.balanced, None if calibration is None else calibration.quantisation)
        if stage.status != PASSED:
            raise BuildError(f"{stage.name}: {stage.reason}")
        self._made += 1
        folder = self.folder / str(self._made)
        folder.mkdir()
        built = self.backend.build(emitted, request, folder, self.stages)
        if selection.route:
            self._require_right(compiled, built)
        fired = {one.name: one.fired for one in rewritten.report}
        fired |= {one.name: one.fired for one in built.prepared.forms}
        return Variant(selection, Loadable(self.backend, built.engine, built.facts), fired, digest)

    def remove(self, variant: Variant) -> None:
        """Free the disk of an engine."""
        shutil.rmtree(variant.engine.engine.parent, ignore_errors=True)

    def changes(self, incumbent: Variant) -> list[Change]:
        """What can be other than in an engine, but what its selection says itself."""
        said = {*self.selection.disabled_rules, *self.selection.enabled_rules}
        needed = form.needed(self.backend.forms)
        fired = {name: count for name, count in incumbent.fired.items() if count and name not in needed | said}
        extra = {name: count for name, count in self._off.items() if count and name not in said | fired.keys()}
        return [
            *(Change(name, LEFT_OUT, count) for name, count in fired.items()),
            *(Change(name, PUT_IN, count) for name, count in extra.items()),
        ]

    def routes(self) -> list[Change]:
        """The settings of the engine's compiler that can be other than by default, but what its selection says itself.

        Raises MachineLacks where the engine's library offers none.
        """
        said = settings(self.selection.route).keys()
        return [Change(word, SET, 1) for word in self.backend.routes() if not settings(word).keys() & said]

    @property
    def _off(self) -> dict[str, int]:
        """How often each rule fires that is off by default, but not those for our kernel where there is none."""
        from mlpdeploy.graph.rewrite import all_rules, for_kernel, on_by_default, rewrite

        kernel = self.backend.carries_kernel(self.selection.gpus)
        off = {*all_rules()} - on_by_default(self.backend.off_for(self.selection.gpus), kernel)
        off -= set() if kernel else for_kernel()
        found = rewrite(self.traced, self.selection.disabled_in_graph, enabled=off).report
        return {one.name: one.fired for one in found if one.name in off}

    @property
    def _batch(self) -> Batch | None:
        """The batch sizes as they are asked for; the one that counts alone where an engine cannot run: it then tells
        how many bytes it moves.
        """
        opt = self.selection.profile.opt
        return None if self.backend.executable() is None else Batch(opt, opt, opt)

    def _require_right(self, compiled: Compiled, built: Built) -> None:
        """Raise BuildError where an engine is not its network, within the budget of its precision."""
        from mlpdeploy.evidence.proof.ladder import PASSED

        rows = None if compiled.calibration is None else compiled.calibration.rows
        self._proof = self._proof or self._prove_engines(rows)
        with self.backend.load(built.engine, built.facts) as engine:
            stage = self._proof(compiled.typed, engine)
        if stage.status != PASSED:
            raise BuildError(f"{stage.name}: {stage.reason}")

    def _prove_engines(self, rows: Arrays | None) -> Callable[[Typed, Run], Stage]:
        from mlpdeploy.evidence.proof.culprit import own_precision
        from mlpdeploy.evidence.proof.engine_rung import in_engine

        chosen = self.selection
        beside = None if chosen.quantised else self.backend.beside(chosen.precision)
        precision, own = beside or chosen.precision, own_precision(self.traced.module)
        budget = self.source.recipe.budget(precision, own, chosen.low_io)
        return in_engine(
            self.source.network,
            self.traced,
            chosen.profile,
            (precision, budget),
            rows,
            chosen,
            chosen.seed,
            self.stages,
        )

    @cached_property
    def _exactly(self) -> Callable[[Rewritten, Quantisation | None], Stage]:
        from mlpdeploy.evidence.proof.verify import in_float64

        return in_float64(self.source.network, self.traced, self.selection.profile, self.selection.seed, self.stages)
