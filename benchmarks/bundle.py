"""What runs a bundle: the bytes of an environment that holds its requirements and nothing else, and of its own code.

python -m benchmarks.bundle      # fetches packages; each engine is called in its environment
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import common
from benchmarks.install import size
from mlpdeploy import Selection, build
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.export import bundle

NETWORK = "vip_s7"
BACKENDS = ("openvino", "onnxruntime")


def measured(artifact: Artifact, folder: Path) -> dict[str, int]:
    """Bytes of all packages of a bundle's environment, and of mlpdeploy's files in it; its engine is called there."""
    exported, environment = folder / "bundle", folder / "environment"
    bundle.write(artifact, exported)
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", exported / "requirements.txt"], check=True)
    subprocess.run([python, exported / "run.py"], env={}, stdout=subprocess.DEVNULL, check=True)
    packages = map(str, (environment / "lib").glob("python*/site-packages"))
    own = (path for path in (exported / "mlpdeploy").rglob("*.py"))
    return {
        "environment": sum(map(size, distributions(path=[*packages]))),
        "package": sum(path.stat().st_size for path in own),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for backend in BACKENDS:
        with TemporaryDirectory() as name:
            artifact = build(Selection(NETWORK, "fp32", backend, out=Path(name) / "artifacts"))
            row = {backend: measured(artifact, Path(name))}
        print(common.write("bundle", row, {"command": "pip install -r requirements.txt", "network": NETWORK}))


if __name__ == "__main__":
    main()
