"""One side of a measurement in a process of its own: what it is asked for it does, and times on its own clock.

    PYTHON .../server.py WORD           a question a line on stdin; an answer a line on stdout, behind WORD

It is run as a file by whichever interpreter has the engine's library and a mlpdeploy, however old, and both sides of a
measurement are run so, each by its own interpreter: the loop that is timed is this one on both sides, and what it calls
is what that mlpdeploy makes of the engine. So no more of mlpdeploy is used here than how engines are loaded.
"""

from __future__ import annotations

import gc
import importlib
import itertools
import json
import os
import platform
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any


class Server:
    """Answers the questions, each by the method of its name."""

    def __init__(self, loaded: ExitStack) -> None:
        """The engine is let go of at the end of `loaded`."""
        self._loaded = loaded
        self._call: Any = None
        self._dtypes: dict[str, Any] = {}
        self._inputs: dict[int, list[dict[str, Any]]] = {}
        self._bound: dict[int, Any] = {}

    def describe(self) -> dict[str, Any]:
        """The versions of Python and of mlpdeploy, and what is lacking (None: nothing), by the name of its module."""
        found: dict[str, Any] = {"python": platform.python_version(), "mlpdeploy": None, "lacking": None}
        try:
            found["mlpdeploy"] = str(getattr(importlib.import_module("mlpdeploy"), "__version__", "of no version"))
            from mlpdeploy.engine.backend import backends as backends
        except ImportError as error:
            found["lacking"] = str(error.name)
        return found

    def load(self, backend: str, file: str, facts: dict[str, Any]) -> dict[str, Any]:
        """Load an engine, to run with the `threads` of its facts.

        `host_clock` is None where a GPU's clock can time it, else why not ("" on a CPU).
        """
        from mlpdeploy.engine.backend import backends

        self._call = self._loaded.enter_context(backends()[backend].load(Path(file), facts))
        self._dtypes = {str(port["name"]): _dtype(str(port["dtype"])) for port in facts["inputs"]}
        if (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(facts["threads"])
        gc.collect()
        gc.disable()
        return {"host_clock": self._host_clock()}

    def inputs(self, batch: int, file: str, drawn: int, count: int) -> dict[str, Any]:
        """Keep `count` inputs of a batch size: the `drawn` ones of a file, called `PLACE NAME` there, and copies."""
        import numpy as np

        with np.load(file) as arrays:
            found = [
                {name: np.ascontiguousarray(arrays[f"{place} {name}"], dtype) for name, dtype in self._dtypes.items()}
                for place in range(drawn)
            ]
        more = itertools.islice(itertools.cycle(found), max(0, count - drawn))
        self._inputs[batch] = [*found, *({name: array.copy() for name, array in one.items()} for one in more)]
        return {}

    def on_device(self, batch: int) -> dict[str, Any]:
        """Bind the engine to inputs of a batch size on the GPU, whose clock times them from here on."""
        from mlpdeploy.evidence.latency.clocks import DeviceCall, Inputs

        pinned = Inputs({"": self._inputs[batch]}).pinned[""]
        self._bound[batch] = bound = DeviceCall(self._call.bind, pinned)
        return {"uncaptured": bound.uncaptured}

    def seconds(self, batch: int, place: int, calls: int) -> dict[str, Any]:
        """Seconds of a call with an input, the mean of so many."""
        call, value = self._call, self._inputs[batch][place]
        clock = time.perf_counter_ns
        began = clock()
        for _ in range(calls):
            call(value)
        return {"seconds": (clock() - began) / calls * 1e-9}

    def phases(self, batch: int, place: int) -> dict[str, Any]:
        """Seconds of copying in, computing and copying out, on the GPU's clock."""
        found = self._bound[batch].phases(place)
        return {"phases": [found.host_to_device, found.compute, found.device_to_host]}

    def _host_clock(self) -> str | None:
        if not hasattr(self._call, "bind"):
            return ""
        import torch

        try:
            from mlpdeploy.evidence.latency.clocks import DeviceCall as DeviceCall
        except ImportError:
            return "the mlpdeploy of one side cannot time on the GPU's clock"
        if torch.cuda.is_available():
            return None
        return f"PyTorch {torch.__version__} cannot use the GPU, whose events it records"


def _dtype(name: str) -> Any:
    import ml_dtypes
    import numpy as np

    return np.dtype(getattr(ml_dtypes, name, name))


def main(word: str) -> None:
    """Answer until nobody asks any more. What else is printed here goes to stderr."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks says when it is over
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with ExitStack() as loaded:
        server = Server(loaded)
        for line in sys.stdin:
            question = json.loads(line)
            try:
                answer = getattr(server, question.pop("do"))(**question)
            except Exception as error:
                answer = {"failed": [kind.__name__ for kind in type(error).__mro__], "message": str(error)}
            answers.write(f"{word} {json.dumps(answer)}\n")
            answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
