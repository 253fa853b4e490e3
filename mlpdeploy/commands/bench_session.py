"""One session of `mlpdeploy bench`: the artifact, its network, and the engines that are built to be held against it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy.artifact import decisions, store, trust
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.commands.measuring import built_copy
from mlpdeploy.engine import form
from mlpdeploy.engine.backend import Backend, BuildRequest
from mlpdeploy.engine.base import one_line
from mlpdeploy.errors import MachineLacks
from mlpdeploy.progress import Stages
from mlpdeploy.selection import Selection
from mlpdeploy.stages import load, plan_network, rewrite_network, trace_network
from mlpdeploy.system import documents

if TYPE_CHECKING:
    from mlpdeploy.engine.backend import LayerTime
    from mlpdeploy.evidence.documents.bench import Credit, Layers, Profile
    from mlpdeploy.evidence.latency import timing
    from mlpdeploy.evidence.latency.contenders import Contender as Rival
    from mlpdeploy.evidence.latency.contenders import Loadable
    from mlpdeploy.graph.tracing.trace import TensorSpec, Traced
    from mlpdeploy.network.source import Source

AGAINST = ("eager", "compile", "export")
"""What an engine is held against unless something else is asked for."""
COMPILED = ("compile", "max-autotune")
KNOWN = tuple(dict.fromkeys((*AGAINST, *COMPILED)))
SITTINGS = 10
TRIAL = 2.0
"""Seconds in which the faster of two layouts of torch.compile is found, behind compiling."""
PROFILED = 10
"""Runs that per-layer times are the median of."""


class Session:
    """One measuring session: the artifact, its network, and the engines that are built to be held against it."""

    def __init__(
        self,
        artifact: Artifact,
        selection: Selection,
        backend: Backend,
        source: Source,
        threads: int,
        folder: Path,
        stages: Stages,
        trusted: bool = False,
    ) -> None:
        from mlpdeploy.evidence.latency.contenders import Loadable

        decided = decisions.applied(selection, decisions.of_manifest(artifact.manifest))
        self.artifact, self.selection, self.backend, self.source = artifact, decided, backend, source
        self.threads, self.folder, self.stages, self.trusted = threads, folder, stages, trusted
        # What an engine in 8 bits is held against computes in the precision of what lies between its products.
        self.precision = backend.beside(selection.precision) or selection.precision
        self.engine = Loadable(backend, artifact.engine, artifact.manifest["facts"]).on(threads)
        self.export: Loadable | None = None

    @cached_property
    def traced(self) -> Traced:
        """The network's graph."""
        return trace_network(self.source, self.stages, self.selection.profile)

    @property
    def specs(self) -> Sequence[TensorSpec]:
        """What the network takes."""
        return self.traced.inputs

    def rivals(
        self, against: Sequence[str] | None, others: Mapping[str, Selection], size: int
    ) -> tuple[list[Rival], dict[str, str]]:
        """The engine, and behind it what `against` names; and of AGAINST what cannot run here, with the reason.

        What has several ways is taken in the one that is fastest at a batch of `size`.
        """
        from mlpdeploy.evidence.documents.bench import EAGER, ENGINE, EXPORT
        from mlpdeploy.evidence.latency import contenders

        what = f"{self.source.recipe.name} {self.selection.precision} with {self.backend.name}"
        found, left_out = [contenders.engine(ENGINE, ENGINE, what, self.engine, self.specs)], {}
        for name in dict.fromkeys(AGAINST if against is None else against):
            lacking = _no_compiler() if name in COMPILED else None
            if lacking is not None and against is not None:
                raise MachineLacks(f"torch.compile cannot run on this machine: {lacking}")
            if lacking is not None:
                left_out[name] = lacking
            elif name == EAGER:
                found.append(contenders.eager(self.source.network, self.specs, *self._torch()))
            elif name in COMPILED:
                found.append(self._compiled(name, size))
            elif name == EXPORT:
                found.append(self._export())
            else:
                found.append(self._other(others[name]))
        return found, left_out

    def measure(self, rivals: Sequence[Rival], sizes: Sequence[int], seconds: float) -> dict[int, timing.Timings]:
        """All contenders at each size, interleaved, in several sittings."""
        from mlpdeploy.evidence.latency.sittings import sittings

        taken = sittings(rivals, sizes, SITTINGS, seconds, self.selection.seed, self.stages)
        if (held := len(taken[sizes[0]].sittings)) < SITTINGS:
            self.stages.say(f"{held} sittings, not {SITTINGS}: --time {seconds:g} has no room for more")
        return taken

    def roofline(self, taken: Mapping[int, timing.Timings]) -> Any:
        """The machine's rates and what they mean for this network."""
        from mlpdeploy.evidence.latency.roofline import roofline

        medians = {s: {n: 1e3 * t.latency(n).median for n in t.seconds} for s, t in taken.items()}
        executed = str(self.engine.facts.get("executed", ""))
        network, outputs, device = self.source.network, self.traced.outputs, self._torch()[1]
        return roofline(network, self.specs, outputs, self.precision, executed, self.threads, device, medians)

    def layers(self, size: int) -> tuple[Layers, Sequence[LayerTime]]:
        """Times by module of our engine, and of the plain export where it was built; our engine's layers themselves."""
        from mlpdeploy.evidence.documents.bench import Layers

        times = self._profile(self.engine, size)
        if isinstance(times, str):
            return Layers(None, None, times), ()
        after = self._by_module(times, self.artifact.model, size)
        if self.export is None:
            return Layers(None, after, "the plain export was not among the contenders"), times
        plain = self._profile(self.export, size)
        if isinstance(plain, str):
            return Layers(None, after, plain), times
        return Layers(self._by_module(plain, self.export.engine.parent / store.MODEL, size), after), times

    def without_rules(self) -> dict[str, Rival]:
        """The engine without each rule that fired, by the rule's name."""
        from mlpdeploy.engine.onnx.emit import emit
        from mlpdeploy.evidence.latency import contenders

        found = {}
        for rule in self._fired():
            without = replace(
                self.selection,
                disabled_rules=(*self.selection.disabled_rules, rule),
                enabled_rules=tuple(name for name in self.selection.enabled_rules if name != rule),
            )
            rewritten = rewrite_network(self.traced, without, self.stages)
            emitted = emit(plan_network(self.traced, rewritten, without, self.stages).served)
            built = self._built(f"without-{rule}", emitted, without.request(self.precision))
            found[rule] = contenders.engine(rule, "rule", f"without {rule}", built, self.specs)
        return found

    def credit(self, without: Mapping[str, Rival], size: int, seconds: float) -> tuple[Credit, ...]:
        """What each rule is worth: the engine without it against the engine, with a budget of their own."""
        from mlpdeploy.evidence.documents.bench import ENGINE, Credit
        from mlpdeploy.evidence.latency import contenders
        from mlpdeploy.evidence.latency.sittings import sittings

        rivals = [contenders.engine(ENGINE, ENGINE, "every rule", self.engine, self.specs), *without.values()]
        with self.stages("credit"):
            taken = sittings(rivals, [size], SITTINGS, seconds, self.selection.seed, self.stages)[size]
        fired = self._fired()
        return tuple(Credit(rule, fired[rule], size, taken.ratio(rule, ENGINE)) for rule in without)

    def _fired(self) -> dict[str, int]:
        """How often each rule fired, and each form of the file that the engine can do without."""
        needed = form.needed(self.backend.forms)
        rules = (*self.artifact.manifest["rules"], *self.artifact.manifest.get("forms", ()))
        return {one["name"]: one["fired"] for one in rules if one["fired"] and one["name"] not in needed}

    def _torch(self) -> tuple[Any, str]:
        """Dtype and device that PyTorch is timed with: the engine's on a GPU, float32 on a CPU."""
        import torch

        from mlpdeploy.engine.onnx.plain import DTYPES

        if self.backend.device(self.engine.facts) == "cuda" and torch.cuda.is_available():
            return DTYPES[self.precision], "cuda"
        return torch.float32, "cpu"

    def _compiled(self, name: str, size: int) -> Rival:
        from mlpdeploy.evidence.latency.contenders import compiled
        from mlpdeploy.evidence.latency.sittings import FEWEST, sittings

        ways = compiled(name, self.source.network, self.specs, *self._torch())
        if len(ways) == 1:
            return ways[0]
        with self.stages(name):
            taken = sittings(ways, [size], FEWEST, TRIAL, self.selection.seed, self.stages)[size]
        fastest = min(ways, key=lambda one: taken.latency(one.name).median)
        return replace(fastest, name=name)

    def _export(self) -> Rival:
        from mlpdeploy.engine.onnx.plain import plain
        from mlpdeploy.evidence.documents.bench import EXPORT
        from mlpdeploy.evidence.latency import contenders

        with self.stages("plain export"):
            emitted = plain(self.source.network, self.specs, self.precision, self.selection.io)
            request = replace(self.selection.request(self.precision), disabled=form.saving(self.backend.forms))
            self.export = self._built(EXPORT, emitted, request)
        what = f"the plain export in {self.precision} with {self.backend.name}, no rule"
        return contenders.engine(EXPORT, EXPORT, what, self.export, self.specs)

    def _other(self, other: Selection) -> Rival:
        from mlpdeploy.evidence.latency import contenders

        original, artifact = built_copy(other, self.folder / other.folder_name, self.stages.listener)
        trust.require(original, self.backend, self.trusted)
        specs = load(other, self.stages).with_images(other).specs()
        loadable = contenders.Loadable(self.backend, artifact.engine, artifact.manifest["facts"]).on(self.threads)
        what = f"{other.name} {other.precision} with {self.backend.name}"
        return contenders.engine(other.name, "recipe", what, loadable, specs)

    def _built(self, name: str, emitted: Any, request: BuildRequest) -> Loadable:
        from mlpdeploy.evidence.latency import contenders

        return contenders.build(self.backend, emitted, request, self.folder / name, self.stages).on(self.threads)

    def _profile(self, loadable: Loadable, size: int) -> tuple[LayerTime, ...] | str:
        from mlpdeploy.evidence.latency.contenders import engine, prepared

        one = engine("profiled", "engine", "", loadable, self.specs)
        inputs = prepared([one], size, self.selection.seed)[one.name][:PROFILED]
        try:
            return self.backend.profile(loadable.engine, loadable.facts, inputs)
        except (OSError, ValueError) as error:  # a profile that goes through a file finds no room for it
            return f"the profile was not written whole: {one_line(error)}"

    def _by_module(self, layers: Sequence[LayerTime], model: Path, size: int) -> Profile:
        from mlpdeploy.evidence.latency.by_module import by_module

        nodes = {node.name for node in documents.read_model(model).graph.node}
        return by_module(layers, nodes, size, self.backend.name)


def _no_compiler() -> str | None:
    if any(map(shutil.which, ("g++", "clang++", "cl"))):
        return None
    return "it needs a C++ compiler; install g++ (Debian, Ubuntu: apt-get install g++)"
