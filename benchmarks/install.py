"""What an installation takes on disk: every distribution of this environment, and which of it is for a GPU alone.

python -m benchmarks.install      # in an environment that holds `pip install .` and nothing else
"""

from __future__ import annotations

import argparse
from importlib.metadata import Distribution, distributions

from benchmarks import common

CUDA = ("nvidia-", "cuda-", "triton")
"""What the names of distributions begin with that only a GPU needs."""


def size(distribution: Distribution, part: str = "") -> int:
    """Bytes of the files of a distribution whose paths have `part` in them; what is missing counts nothing."""
    files = (path for path in distribution.files or () if part in str(path))
    located = (distribution.locate_file(path) for path in files)
    return sum(file.stat().st_size for file in located if file.is_file())  # type: ignore[attr-defined]


def measured() -> dict[str, int]:
    """Bytes of everything, of the distributions for CUDA, and of PyTorch's own code for CUDA."""
    found = {str(one.metadata["Name"]).lower(): one for one in distributions()}
    sizes = {name: size(one) for name, one in found.items()}
    return {
        "whole": sum(sizes.values()),
        "cuda": sum(bytes_ for name, bytes_ in sizes.items() if name.startswith(CUDA)),
        "torch_cuda": size(found["torch"], "libtorch_cuda"),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(common.write("install", measured(), {"command": "pip install ."}))


if __name__ == "__main__":
    main()
