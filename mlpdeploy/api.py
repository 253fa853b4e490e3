"""Engines as Python objects: compile a network in hand, call its engine, prove it, keep it.

    >>> import torch, mlpdeploy
    >>> network = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 4))
    >>> engine = mlpdeploy.compile(network, torch.randn(2, 8), precision="fp32", backend="onnxruntime", batch="1:4:16")
    >>> engine
    <mlpdeploy.Engine python:Sequential fp32 onnxruntime, batch 1:4:16>
    >>> engine(torch.randn(3, 8)).shape
    torch.Size([3, 4])
    >>> engine.verify().verdict()
    'passed'
    >>> folder = engine.save("engines/mine")
    >>> again = mlpdeploy.load("engines/mine")
    >>> x = torch.randn(3, 8)
    >>> bool((again(x) == engine(x)).all())
    True

`compile` goes through `pipeline.build`, as `mlpdeploy build` does, and `Engine.verify` through `pipeline.verify`.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mlpdeploy import pipeline, store, trust
from mlpdeploy.engine.backend import Runner, backends
from mlpdeploy.errors import InputError, MachineLacks
from mlpdeploy.lookup import check_network
from mlpdeploy.recipe import kind
from mlpdeploy.selection import Selection

if TYPE_CHECKING:
    from torch import nn

    from mlpdeploy.evidence.ladder import Verification
    from mlpdeploy.progress import Listener
    from mlpdeploy.source import Source
    from mlpdeploy.store import Artifact


class Engine:
    """A built engine: an artifact, and what is needed to run it and to prove it.

    Made by `compile` and `load`. It holds the loaded engine from the first call on, until `close` (it is a context
    manager too). An engine that this machine cannot run can still be verified and saved. Where another engine is built
    in its folder, one that was loaded goes on as it was, and everything else says so: load it again.

    It may be pickled, as multiprocessing does: what arrives is loaded anew from the folder, without the network.
    """

    def __init__(self, artifact: Artifact, source: Source | None = None, *, trusted: bool = False) -> None:
        self.folder = artifact.folder
        self.manifest: dict[str, Any] = artifact.manifest
        self.cached = artifact.cached
        self._artifact, self._source, self._trusted = artifact, source, trusted
        self._begin()
        _ENGINES.add(self)

    def _begin(self) -> None:
        """Nothing is loaded yet."""
        self._stack, self._loading = ExitStack(), threading.Lock()
        self._runner: Runner | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (str(self.folder.absolute()), self.manifest["files"], self._trusted)

    def __repr__(self) -> str:
        m = self.manifest
        batch = "{min}:{opt}:{max}".format(**m["batch"])
        return f"<mlpdeploy.Engine {m['recipe']['name']} {m['precision']} {m['backend']}, batch {batch}>"

    def __call__(self, *inputs: Any) -> Any:
        """The network's outputs for a batch of inputs: one tensor, or a tuple of them where it has several.

        Inputs are torch tensors or NumPy arrays, batch first, in the order of the network's arguments (or one sequence,
        or one mapping by name); outputs are of the same kind, tensors on the device of the first input. The engine's
        own dtypes are those of `io`: floating-point inputs are converted.

        Raises MachineLacks where this machine cannot run the engine, InputError where the inputs do not fit it.
        """
        import torch

        from mlpdeploy.given import named_arrays, to_tensor

        given = inputs[0] if len(inputs) == 1 else inputs
        arrays = named_arrays(given, [port["name"] for port in self.inputs])
        found = self._run()({port["name"]: _cast(arrays[port["name"]], port) for port in self.inputs})
        values: list[Any] = [found[port["name"]] for port in self.manifest["outputs"]]
        first = next(iter(given.values() if isinstance(given, Mapping) else inputs))
        first = first[0] if isinstance(first, tuple | list) else first
        if isinstance(first, torch.Tensor):
            values = [to_tensor(value, first.device) for value in values]
        return values[0] if len(values) == 1 else tuple(values)

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """What it takes: name, shape (`batch` first) and dtype of each input."""
        return list(self.manifest["inputs"])

    @property
    def cannot_run(self) -> str | None:
        """None where this machine can run the engine, else one line: why not."""
        backend = backends().get(self.manifest["backend"])
        if backend is None:
            return f"this mlpdeploy has no backend {self.manifest['backend']}"
        return backend.available() or backend.executable()

    def verify(
        self,
        network: nn.Module | None = None,
        *,
        data: Any = None,
        labels: Any = None,
        progress: Listener | None = None,
    ) -> Verification:
        """Climb the ladder of `mlpdeploy verify`; the findings are kept beside the engine too.

        `data` are real inputs (arrays or tensors like the example; for a recipe's network a folder of images too), on
        which the agreement of the top-1 class is gated; `labels` (n,) give accuracies as well. An engine that was
        compiled from a network in Python and then loaded needs that `network` again: an artifact does not hold it.

        Raises InputError where the network is missing, or `data` does not fit it, and ArtifactError where the engine
        was built from a network with other weights.
        """
        selection = Selection.from_json(self.manifest["selection"])
        return pipeline.verify(
            selection, source=self._network(network), artifact=self._artifact,
            data=self._samples(data, labels, in_hand=network is not None), trusted=self._trusted, progress=progress,
        )  # fmt: skip

    def bench(self, network: nn.Module | None = None, **options: Any) -> Any:
        """Time it beside its baselines, as `mlpdeploy bench` does; the result is kept beside the engine too.

        `network` is needed where `verify` needs it. The options are those of `mlpdeploy.benching.bench`: `against`,
        `sizes`, `threads`, `seconds`, `credit`. Raises MachineLacks where this machine cannot run the engine.
        """
        from mlpdeploy import benching

        store.require_same(self._artifact)
        selection, source = Selection.from_json(self.manifest["selection"]), self._network(network)
        if network is not None and source is not None:
            from mlpdeploy.graph.trace import trace

            check_network(self._artifact, trace(source.network, source.specs()), source.recipe.name)
        return benching.bench(selection, source=source, artifact=self._artifact, trusted=self._trusted, **options)

    def report(self, *, html: str | Path | None = None, markdown: str | Path | None = None) -> list[Path]:
        """Write the page and the Markdown that `mlpdeploy report` writes; the files that were written.

        `html` and `markdown` say where, each on its own; without both, report.html and report.md lie in `folder`.
        """
        from mlpdeploy import reporting

        store.require_same(self._artifact)
        where = {"html": html, "markdown": markdown}
        found = reporting.report(self._artifact, **{key: Path(path) for key, path in where.items() if path is not None})
        return [Path(file) for file in found["files"]]

    def save(self, path: str | Path) -> Path:
        """Keep the engine, with everything that was found about it, in a folder of its own; gives the folder.

        An artifact that was there is replaced, in one step. Raises InputError where something else is there.
        """
        return store.copy(self._artifact, Path(path)).folder

    def close(self) -> None:
        """Let go of the loaded engine; a later call loads it again."""
        self._runner = None
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(self) -> Runner:
        with self._loading:
            if self._runner is None:
                self._runner = self._stack.enter_context(self._load())
            return self._runner

    def _load(self) -> AbstractContextManager[Runner]:
        reason = self.cannot_run
        if reason is not None:
            raise MachineLacks(f"the {self.manifest['backend']} engine cannot run on this machine: {reason}")
        backend = backends()[self.manifest["backend"]]
        trust.require(self._artifact, backend, self._trusted)
        store.require_same(self._artifact)
        return backend.load(self._artifact.engine, self.manifest["facts"])

    def _network(self, network: nn.Module | None) -> Source | None:
        """The network to verify against; None where the selection's name finds it, and may be used to find it."""
        name = self.manifest["selection"]["name"]
        if network is None and kind(name) == "given" and self._source is None:
            raise InputError("the artifact does not hold the network it was compiled from: engine.verify(network)")
        if network is None and kind(name) == "user" and self._source is None and not self._trusted:
            raise InputError(
                f"this engine says that it was built from {name}, and that is no reason to import it: "
                "engine.verify(network), or mlpdeploy.load(path, trusted=True) if you trust who made it"
            )
        if network is None:
            return self._source
        from mlpdeploy.given import source_like

        if kind(name) not in ("given", "user"):
            raise InputError(f"this engine was built from {name}, which is found by its name: leave the network out")
        return source_like(network, self.inputs, name)

    def _samples(self, data: Any, labels: Any, in_hand: bool) -> Any:
        from mlpdeploy.given import labelled_rows, require_prepared

        if data is None or isinstance(data, str | Path):
            if labels is not None:
                raise InputError("labels need the rows that they belong to: pass arrays as data")
            if data is not None and (in_hand or kind(self.manifest["selection"]["name"]) == "given"):
                require_prepared(data)
            return None if data is None else str(data)
        from mlpdeploy.evidence.samples import Samples

        return Samples(*labelled_rows(data, labels, [port["name"] for port in self.inputs]))


def load(path: str | Path, *, trusted: bool = False) -> Engine:
    """The engine of an artifact: a folder that `Engine.save` or `mlpdeploy build` wrote, or a file in it.

    Loading, reporting and saving run nothing that the artifact holds. Some engines hold code that runs when they are
    called (those of inductor and TensorRT), and an artifact may name code to import (`package.module:factory`). Of one
    that you did not build here yourself, that is refused unless you say `trusted=True`: as with a pickle, do so only if
    you trust who made it.

    Raises ArtifactError where there is none, where a file is missing or altered, or where another version wrote it.
    """
    return Engine(store.open_whole(Path(path)), trusted=trusted)


_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()
_BEHIND: list[Any] = []
"""What a forked process has of the engines of its parent, and must not touch."""


def _forked() -> None:
    for engine in _ENGINES:
        _BEHIND.append((engine._stack, engine._runner))
        engine._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _again(folder: str, files: dict[str, Any], trusted: bool) -> Engine:
    """An engine that was pickled. Raises ArtifactError where another was built in its folder since."""
    engine = load(folder, trusted=trusted)
    store.require_same(replace(engine._artifact, manifest=engine.manifest | {"files": files}))
    return engine


def _cast(array: Any, port: dict[str, Any]) -> Any:
    """An input as the engine takes it: numbers are converted, but not floating-point ones to integers."""
    import ml_dtypes
    import numpy as np

    wanted = np.dtype(ml_dtypes.bfloat16 if port["dtype"] == "bfloat16" else port["dtype"])
    if array.dtype != wanted and np.issubdtype(wanted, np.integer) and not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"input {port['name']!r} takes {port['dtype']}, it was given {array.dtype}")
    return np.require(array, wanted, ("C", "W"))  # a library may refuse numbers that it could not overwrite
