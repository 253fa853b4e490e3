"""A built engine as an object: call it, prove it, time it, keep it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy import pipeline
from mlpdeploy.artifact import store, trust
from mlpdeploy.artifact.copying import copy
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.held import Held, Holding
from mlpdeploy.engine.runner import AS_CALLED, Loading
from mlpdeploy.errors import ArtifactError, InputError
from mlpdeploy.selection import Selection
from mlpdeploy.selection.checks import at_least
from mlpdeploy.zoo.recipe import kind

if TYPE_CHECKING:
    from torch import nn

    from mlpdeploy.artifact.store import Artifact
    from mlpdeploy.calling import Calling
    from mlpdeploy.commands.predicting import Predictions
    from mlpdeploy.evidence.documents.evaluation import Evaluation
    from mlpdeploy.evidence.proof.ladder import Verification
    from mlpdeploy.network.source import Source
    from mlpdeploy.progress import Listener


class Engine(Holding):
    """A built engine: an artifact, and what is needed to run it and to prove it.

    Made by `compile` and `load`. It holds the loaded engine from the first call on, until `close` (it is a context
    manager too). Several threads may call it at once. An engine that this machine cannot run can still be verified and
    saved. Where another engine is built in its folder, one that was loaded goes on as it was, and everything else says
    so: load it again.

    It may be pickled, as multiprocessing does: what arrives is loaded anew from the folder, without the network. Of a
    process that is forked, engines that were called before the fork are not part.
    """

    def __init__(
        self,
        artifact: Artifact,
        source: Source | None = None,
        *,
        trusted: bool = False,
        loading: Loading = AS_CALLED,
    ) -> None:
        self.folder = artifact.folder
        self.manifest: dict[str, Any] = artifact.manifest
        self.cached = artifact.cached
        self.temporary = False
        self._artifact, self._source, self._trusted, self._loading = artifact, source, trusted, loading
        self._of: Engine | None = None
        self._held = Held(
            artifact.manifest["backend"], artifact.engine, artifact.manifest["facts"],
            lambda backend: trust.require(artifact, backend, trusted), loading,
        )  # fmt: skip

    @cached_property
    def _calling(self) -> Calling:
        from mlpdeploy.calling import Calling

        return Calling(self.manifest)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (str(self.folder.absolute()), self.manifest, self._trusted, self._loading)

    def __repr__(self) -> str:
        m = self.manifest
        batch = Batch(**m["batch"])
        return f"<mlpdeploy.Engine {m['recipe']['name']} {m['precision']} {m['backend']}, batch {batch.text}>"

    def __call__(self, *inputs: Any, out: Any = None) -> Any:
        """The network's outputs for a batch of inputs: one tensor, a tuple of several, or a dict where it returns one.

        Inputs are torch tensors or NumPy arrays, batch first, in the order of the network's arguments (or one sequence,
        or one mapping by name); outputs are of the same kind, tensors on the device of the first input. The engine's
        own dtypes are those of `io`: floating-point inputs are converted. They are read while the call lasts.

        Tensors on the GPU of an engine stay there: what it computes is enqueued on PyTorch's current stream, and
        nothing is waited for once a batch size has its CUDA graph. An engine that the caller captures in a graph is
        loaded with `cuda_graphs=False`.

        `out` is written into and returned: an array or tensor, or a sequence or mapping of several, with the dtypes and
        shapes of the outputs, contiguous, on the device of the first input, and apart from the inputs in memory.

        Raises MachineLacks where this machine cannot run the engine, InputError where inputs or `out` do not fit it.
        """
        try:
            return self._calling(self._held, inputs, out)
        except ArtifactError:
            store.require_same(self._artifact)  # which says better what happened
            raise

    def pool(self, contexts: int) -> Engine:
        """The same engine, loaded once more and at once, with this many contexts made ahead.

        Of an engine itself, each call in progress has a context, made where none is idle. A pool makes none later, so
        that no call waits for that, and bounds the memory: where all contexts are taken, a call waits for one. What a
        context keeps for a batch size on a GPU is still made when it is first given that. `close` (or `with`) lets go
        of it once calls in progress are done. Engines of inductor and Torch-TensorRT have one context here too.

        Raises what a call does, and InputError for less than one context.
        """
        at_least("contexts of a pool", contexts, 1)
        loading = replace(self._loading, contexts=contexts)
        made = Engine(self._artifact, self._source, trusted=self._trusted, loading=loading)
        made._of = self  # whose temporary folder goes when it does
        made._held.load()
        return made

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """What it takes: name, shape (`batch` first) and dtype of each input."""
        return list(self.manifest["inputs"])

    @property
    def cannot_run(self) -> str | None:
        """None where this machine can run the engine, else one line: why not."""
        return self._held.cannot_run()

    def verify(
        self,
        network: nn.Module | None = None,
        *,
        data: Any = None,
        labels: Any = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        crop: float | None = None,
        resize: str | None = None,
        limit: int | None = None,
        quick: bool = False,
        progress: Listener | None = None,
    ) -> Verification:
        """Climb the ladder of `mlpdeploy verify`; the findings are kept beside the engine too.

        `data` are real inputs (arrays or tensors like the example, an .npz file, or a folder of images), on which the
        agreement of the top-1 class is gated; `labels` (n,) give accuracies as well. How the images of a folder are
        prepared is known of a recipe's network and where `compile` was told; else `mean` and `std` say it, and `crop`
        and `resize`, as `mlpdeploy verify` has them. `limit` rows of it are used. `quick` leaves out the largest batch.
        An engine that was compiled from a network in Python and then loaded needs that `network` again: an artifact
        does not hold it.

        Raises InputError where the network is missing, or `data` does not fit it, and ArtifactError where the engine
        was built from a network with other weights.
        """
        selection = replace(
            Selection.from_json(self.manifest["selection"]), mean=floats(mean), std=floats(std), crop=crop,
            resize=resize, limit=limit,
        )  # fmt: skip
        source, samples = self._network(network), self._samples(data, labels)
        return pipeline.verify(
            selection, source=source, artifact=self._artifact, data=samples, quick=quick, trusted=self._trusted,
            progress=progress,
        )  # fmt: skip

    def predict(self, *images: str | Path, labels: str | Path | None = None, **options: Any) -> Predictions:
        """The most probable classes of images and folders of them, as `mlpdeploy predict` gives them.

        The options are those of `mlpdeploy.commands.predicting.predict`: `top`. Raises InputError where an image or the
        `labels` cannot be read, MachineLacks where this machine cannot run the engine.
        """
        from mlpdeploy.commands.predicting import predict

        selection = Selection.from_json(self.manifest["selection"])
        named = None if labels is None else Path(labels)
        return predict(
            selection, [Path(one) for one in images], artifact=self._artifact, labels=named, trusted=self._trusted,
            **options,
        )  # fmt: skip

    def evaluate(
        self,
        data: str | Path,
        network: nn.Module | None = None,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        crop: float | None = None,
        resize: str | None = None,
        **options: Any,
    ) -> Evaluation:
        """How often it is right on a folder of classes, beside PyTorch, as `mlpdeploy evaluate` counts it.

        `network` is needed where `verify` needs it, and images are prepared as there. The options are those of
        `mlpdeploy.commands.evaluating.evaluate`: `only`, `class_map`, `limit`, `workers`, `restart`. Raises
        MachineLacks where this machine cannot run the engine, and what `verify` raises.
        """
        from mlpdeploy.commands.evaluating import evaluate

        selection = replace(
            Selection.from_json(self.manifest["selection"]), mean=floats(mean), std=floats(std), crop=crop,
            resize=resize,
        )  # fmt: skip
        source = self._network(network, "evaluate(folder, network)")
        return evaluate(
            selection, Path(data), source=source, artifact=self._artifact, trusted=self._trusted, **options
        )  # fmt: skip

    def bench(self, network: nn.Module | None = None, **options: Any) -> Any:
        """Time it beside its baselines, as `mlpdeploy bench` does; the result is kept beside the engine too.

        `network` is needed where `verify` needs it. The options are those of `mlpdeploy.commands.benching.bench`:
        `against`, `sizes`, `threads`, `seconds`, `credit`. Raises MachineLacks where this machine cannot run the
        engine.
        """
        from mlpdeploy.commands import benching

        selection = Selection.from_json(self.manifest["selection"])
        store.require_same(self._artifact)
        source = self._network(network)
        return benching.bench(selection, source=source, artifact=self._artifact, trusted=self._trusted, **options)

    def report(self, *, html: str | Path | None = None, markdown: str | Path | None = None) -> list[Path]:
        """Write the page and the Markdown that `mlpdeploy report` writes; the files that were written.

        `html` and `markdown` say where, each on its own; without both, report.html and report.md lie in `folder`.
        Raises InputError without both where that is a temporary folder.
        """
        from mlpdeploy.evidence.report import reporting

        if self.temporary and html is None and markdown is None:
            raise InputError("this engine's folder goes with it: say html='report.html', or save the engine first")
        store.require_same(self._artifact)
        where = {"html": html, "markdown": markdown}
        found = reporting.report(self._artifact, **{key: Path(path) for key, path in where.items() if path is not None})
        return [Path(file) for file in found["files"]]

    def save(self, path: str | Path) -> Path:
        """Keep the engine, with everything that was found about it, in a folder of its own; gives the folder.

        An artifact that was there is replaced, in one step. Raises InputError where something else is there.
        """
        return copy(self._artifact, Path(path)).folder

    def _network(self, network: nn.Module | None, needs: str = "verify(network)") -> Source | None:
        """The network to verify against; None where the selection's name finds it, and may be used to find it.

        `needs` is the call to make where neither does.
        """
        name = self.manifest["selection"]["name"]
        if network is None and kind(name) == "given" and self._source is None:
            raise InputError(f"the artifact does not hold the network it was compiled from: engine.{needs}")
        if network is None and kind(name) == "user" and self._source is None:
            trust.require_named(self._artifact, name, self._trusted)
        if network is None:
            return self._source
        from mlpdeploy.network.in_hand import source_like

        if kind(name) not in ("given", "user"):
            raise InputError(f"this engine was built from {name}, which is found by its name: leave the network out")
        built = Selection.from_json(self.manifest["selection"])
        ports = self.manifest["recipe"].get("inputs", self.inputs)
        return source_like(network, ports, name).called((), built.output_names)

    def _samples(self, data: Any, labels: Any) -> Any:
        if data is None or isinstance(data, str | Path):
            if labels is not None:
                raise InputError("labels need the rows that they belong to: pass arrays as data")
            return None if data is None else str(data)
        from mlpdeploy.evidence.proof.samples import Samples
        from mlpdeploy.network.in_hand import rows_of

        return Samples(*rows_of(data, labels, [port["name"] for port in self.inputs]))


def _again(folder: str, manifest: dict[str, Any], trusted: bool, loading: Loading) -> Engine:
    """An engine that was pickled. Raises ArtifactError where its folder is gone, or holds another one by now."""
    artifact = store.Artifact(Path(folder), manifest)
    store.require_same(artifact)
    return Engine(artifact, trusted=trusted, loading=loading)


def floats(values: Sequence[float] | None) -> tuple[float, ...] | None:
    """One number a channel. Raises InputError where they are none."""
    try:
        return None if values is None else tuple(map(float, values))
    except (TypeError, ValueError) as error:
        raise InputError(f"{values!r}: give one number a channel, such as [0.5, 0.5, 0.5]") from error
