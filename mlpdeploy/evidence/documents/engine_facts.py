"""What is known of an engine without timing it, for a gate on any machine: size, layers, memory, accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mlpdeploy.artifact import store
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.engine.batch import Batch
from mlpdeploy.errors import BuildError
from mlpdeploy.evidence.proof.ladder import FAILED, NOT_EXECUTED
from mlpdeploy.system import documents

_PARSER = "tensorrt-rtx"


@dataclass(frozen=True)
class Accuracy:
    """How good the last stage is that was executed.

    `measure` is `top-1 accuracy` on labelled images, `top-1 agreement` with the network on images without labels, or
    `relative error` against the network on random inputs, of which less is better; each a number from 0 to 1.
    """

    measure: str
    value: float
    stage: str
    inputs: str
    rows: int

    @property
    def loss(self) -> float:
        """The value, turned so that more is worse."""
        return self.value if self.measure == "relative error" else 1 - self.value


@dataclass(frozen=True)
class Facts:
    """Bytes of the engine's file, seconds that its build took, and what TensorRT's parser makes of its network.

    `memory_bytes` is what the graph holds at batch `memory_batch`: weights, and the most activations alive at once.
    `failed_stages` is how many stages of the last verification failed. What could not be had is None, and `reasons`
    says why, and what failed. `launches`, and those that only copy and that transpose, are of an engine that tells.
    """

    engine_bytes: int
    build_seconds: float | None
    layers: int | None
    transposes: int | None
    memory_bytes: int | None
    accuracy: Accuracy | None
    reasons: dict[str, str]
    memory_batch: int | None = None
    failed_stages: int | None = None
    launches: int | None = None
    copies: int | None = None
    launched_transposes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Facts:
        """Read back from a saved document."""
        accuracy = values.get("accuracy")
        return cls(**{**values, "accuracy": None if accuracy is None else Accuracy(**accuracy)})


def facts_of(artifact: Artifact, batch: int | None = None) -> Facts:
    """The facts of an artifact, its memory at `batch` (None: the largest).

    TensorRT's parser needs no GPU, so an engine of another backend has layers as well.
    """
    from mlpdeploy.evidence.documents.memory import peak_bytes

    manifest, reasons = artifact.manifest, {}
    launches = manifest["facts"].get("launches") or {}
    model = documents.read_model(artifact.model)
    parsed = manifest["facts"].get("parsed") or _parsed(model)
    if isinstance(parsed, str):
        reasons["layers"] = reasons["transposes"] = parsed
    batch = batch or int(manifest["batch"]["max"])
    memory = peak_bytes(model, batch)
    if isinstance(memory, str):
        reasons["memory"] = memory
    document = verification_of(artifact)
    if isinstance(document, str):
        reasons["accuracy"] = reasons["verification"] = document
        accuracy, failed = None, None
    else:
        accuracy = _accuracy(document)
        failed = sum(one["status"] == FAILED for one in document["stages"])
        if failed:
            reasons["verification"] = document["verdict"]
    if isinstance(accuracy, str):
        reasons["accuracy"] = accuracy
    return Facts(
        engine_bytes=sum(
            facts["bytes"] for name, facts in manifest["files"].items() if name.startswith(manifest["engine"])
        ),
        build_seconds=float(manifest["facts"]["build_seconds"]),
        layers=None if isinstance(parsed, str) else parsed["total"]["layers"],
        transposes=None if isinstance(parsed, str) else parsed["total"]["transposes"],
        memory_bytes=None if isinstance(memory, str) else memory,
        accuracy=None if isinstance(accuracy, str) else accuracy,
        reasons=reasons,
        memory_batch=batch,
        failed_stages=failed,
        launches=launches.get("total"),
        copies=launches.get("copies"),
        launched_transposes=launches.get("transposes"),
    )


def verification_of(artifact: Artifact) -> dict[str, Any] | str:
    """The last verification of these very files at all their batch sizes, or one line: why there is none."""
    document = store.attached(artifact, store.VERIFICATION)
    if document is None:
        return "not verified"
    if document["files"] != {name: facts["sha256"] for name, facts in artifact.manifest["files"].items()}:
        return "verified before it was built again"
    if missing := set(Batch(**artifact.manifest["batch"]).sizes()) - set(document["sizes"]):
        return f"not verified at batch {max(missing)}"
    return document


def _accuracy(document: Mapping[str, Any]) -> Accuracy | str:
    """How good the last stage was that was executed, or one line: why that is not known."""
    ran = [one for one in document["stages"] if one["status"] != NOT_EXECUTED]
    if not ran:
        return "nothing was executed when it was verified"
    stage = ran[-1]
    images, rows = stage["images"], document["rows"]
    if images is not None and images["accuracy"] is not None:
        return Accuracy("top-1 accuracy", images["accuracy"], stage["name"], document["inputs"], rows)
    if images is not None and images["agreement"] is not None:
        return Accuracy("top-1 agreement", images["agreement"]["top1"], stage["name"], document["inputs"], rows)
    if stage["max_relative"] is None:
        return f"the stage {stage['name']} has no finite error"
    return Accuracy("relative error", stage["max_relative"], stage["name"], document["inputs"], rows)


def _parsed(model: Any) -> dict[str, Any] | str:
    from mlpdeploy.engine.backends import tensorrt

    backend = tensorrt.TensorRT(_PARSER)
    if (reason := backend.available()) is not None:
        return reason
    try:
        return tensorrt.parse_prepared(model, _PARSER).facts()
    except BuildError as error:
        return str(error).splitlines()[0]
