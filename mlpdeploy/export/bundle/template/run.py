"""The engine whose artifact lies beside this file: called on zeros, to see that it runs, or on the rows of a file.

    python run.py                          # prints the outputs' names and shapes
    python run.py INPUTS.npz OUTPUTS.npz   # arrays by name, the batch first

Who runs this trusts the engine that was written with it.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy import runtime
from mlpdeploy.engine.signature import numpy_dtype
from mlpdeploy.errors import MlpdeployError


def main(arguments: list[str]) -> str | None:
    """What is wrong, in a line; None where nothing is."""
    if len(arguments) not in (0, 2):
        return "usage: run.py [INPUTS.npz OUTPUTS.npz]"
    try:
        with runtime.open(Path(__file__).parent / "artifact", trusted=True) as engine:
            if arguments:
                outputs: dict[str, Any] = engine(dict(np.load(arguments[0])))
                np.savez(arguments[1], **outputs)
                return None
            least = engine.manifest["batch"]["min"]
            rows = {port.name: np.zeros((least, *port.shape), numpy_dtype(port.dtype)) for port in engine.inputs}
            for name, array in engine(rows).items():
                print(name, array.shape, array.dtype)
    except (MlpdeployError, OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile) as error:
        return f"error: {error}"
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
