"""Which TensorRT a Triton container has: a plan is loaded by the version that built it."""

from __future__ import annotations

from mlpdeploy.engine.features import VERSION
from mlpdeploy.errors import InputError

IMAGE = "nvidia/tritonserver"
HOLDS = {"25.08": "10.13.2.6", "25.09": "10.13.3.9"}
"""TensorRT's version by release of the `-py3` containers (NVIDIA's Frameworks Support Matrix), oldest first.

Other containers of a release, such as `-trtllm-python-py3`, hold others: for these `--tensorrt` says it.
"""


def require(built: str, features: list[str], container: str | None, tensorrt: str | None) -> None:
    """Raises InputError where a container, or the TensorRT of a server, does not load plans of the version `built`."""
    if container is None and tensorrt is None:
        return
    if container is not None and tensorrt is None and container not in HOLDS:
        known = ", ".join(HOLDS)
        raise InputError(f"--container {container}: its TensorRT is not known here ({known} are); say it by --tensorrt")
    there = tensorrt or HOLDS[str(container)]
    if not _loads(built, there, features):
        what = f"--tensorrt {there}" if tensorrt else f"--container {container}: it has TensorRT {there}"
        fitting = " or ".join(name for name, one in HOLDS.items() if _loads(built, one, features))
        hint = f"--container {fitting} fits" if fitting else f"a server with TensorRT {built} fits"
        raise InputError(f"{what}, and the plan was built by {built}; {hint}, or build it again by that version")


def image(built: str | None, features: list[str], container: str | None) -> str:
    """The container to start: the one that was asked for, the newest that loads the plan, or `YY.MM` to fill in."""
    fitting = [name for name, there in HOLDS.items() if built is None or _loads(built, there, features)]
    return f"{IMAGE}:{container or (fitting[-1] if fitting else 'YY.MM')}-py3"


def _loads(built: str, there: str, features: list[str]) -> bool:
    """Whether one version loads plans of another; of as many numbers as `there` has."""
    then, now = (tuple(int(part) for part in text.split(".") if part.isdecimal()) for text in (built, there))
    if VERSION in features:
        return then[:1] == now[:1] and then[: len(now)] <= now
    return bool(now) and then[: len(now)] == now
