"""A loaded engine as what is called: each call has a context to itself, and calls at once have one each."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from mlpdeploy.engine.signature import Signature, numpy_dtype

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")

Arrays = Mapping[str, "np.ndarray"]
Tensors = Mapping[str, "Tensor"]

Context = Callable[[Any, Any], None]
"""One way through a loaded engine, for one call at a time: it computes from inputs by name into outputs by name.

Both are what the signature says, in C order, and do not overlap. Neither is kept once it returns. On a GPU they are
tensors there: it enqueues on PyTorch's current stream, and returns before the outputs are there.
"""


@dataclass(frozen=True)
class Launch:
    """An engine bound to tensors on a GPU: `run` enqueues it on PyTorch's current stream and gives its outputs there.

    It belongs to one caller: each run writes into the same outputs. `uncapturable` is None, or one line: why no CUDA
    graph can be made of it.
    """

    run: Callable[[], Sequence[Tensor]]
    uncapturable: str | None = None


Bind = Callable[[Tensors], Launch]
"""Inputs by name, tensors on the GPU that stay where they are, to the work on them. Several threads may bind."""


@dataclass(frozen=True)
class OnDevice:
    """A runner whose work on a GPU can be had by itself, without the copies between host and device."""

    run: Callable[..., Any]
    bind: Bind

    def __call__(self, *given: Any) -> Any:
        return self.run(*given)


@dataclass(frozen=True)
class Loading:
    """How an engine is loaded: `contexts` are made ahead, and no call has another (None: they are made when needed).

    `cuda_graphs`: whether what an engine does on a GPU is made one CUDA graph for each batch size that it is given.
    """

    contexts: int | None = None
    cuda_graphs: bool = True


AS_CALLED = Loading()


class Runner(Protocol):
    """A loaded engine: arrays in by input name, arrays out by output name; tensors on the GPU too where it runs there.

    Several threads may call it at once, and each has the answer to its own inputs. Inputs are not kept. Outputs are
    written into `out`, by output name, which is what the signature says and shares no memory with inputs, or into new
    ones: no later call and no other caller writes into them. Raises InputError where inputs are not what it takes.
    """

    def __call__(self, inputs: Arrays, out: Arrays | None = None, /) -> dict[str, np.ndarray]: ...


class Calls:
    """A `Runner` of contexts."""

    def __init__(self, signature: Signature, make: Callable[[], Context], loading: Loading, concurrent: bool) -> None:
        """Without `concurrent` there is one context, and calls take turns."""
        import numpy as np

        self._signature, self._make, self._empty = signature, make, np.empty
        self._outputs = [(port.name, port.shape, numpy_dtype(port.dtype)) for port in signature.outputs]
        self._most = loading.contexts if concurrent else 1
        self._turns = (
            None if self._most is None else threading.Lock() if self._most == 1 else threading.Semaphore(self._most)
        )
        self._lock = threading.Lock()
        self._idle: dict[Hashable, list[Context]] = defaultdict(list)
        self._made = 0 if loading.contexts is None else self._most or 0
        self._idle[None] = [make() for _ in range(self._made)]

    def __call__(self, inputs: Arrays, out: Arrays | None = None) -> dict[str, np.ndarray]:
        """See Runner."""
        rows = self._signature.check(inputs)
        if out is None:
            out = {name: self._empty((rows, *shape), dtype) for name, shape, dtype in self._outputs}
        self._compute(inputs, out)
        return dict(out)

    def _compute(self, inputs: Any, outputs: Any, place: Hashable = None) -> None:
        """With a context to itself, by preference one that was last used in the same `place`."""
        if self._turns is not None:
            self._turns.acquire()
        try:
            context = self._taken(place)
            try:
                context(inputs, outputs)
            finally:
                self._idle[place].append(context)
        finally:
            if self._turns is not None:
                self._turns.release()

    def _taken(self, place: Hashable) -> Context:
        with self._lock:
            idle = self._idle[place]
            if not idle and self._made == self._most:
                idle = next(filter(None, self._idle.values()))
            if idle:
                return idle.pop()
            self._made += 1
        try:
            return self._make()
        except BaseException:
            with self._lock:
                self._made -= 1
            raise


@dataclass(frozen=True)
class Contexts:
    """What a backend loads: `make` makes a context that takes arrays; `bind` is there where the engine is on a GPU."""

    make: Callable[[], Context]
    bind: Bind | None = None
    _making: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @contextmanager
    def runner(self, signature: Signature, loading: Loading, concurrent: bool) -> Iterator[Runner]:
        """The engine as what is called. Contexts are made one at a time."""
        made = Calls(signature, self.one_at_a_time(self.make), loading, concurrent)
        yield made if self.bind is None else OnDevice(made, self.one_at_a_time(self.bind))

    def one_at_a_time(self, make: Callable[P, T]) -> Callable[P, T]:
        """What makes a context, for one thread at a time: few engines say that several may."""

        def making(*given: P.args, **named: P.kwargs) -> T:
            with self._making:
                return make(*given, **named)

        return making
