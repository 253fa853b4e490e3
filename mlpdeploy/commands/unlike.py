"""In what a baseline and the candidate differ, although it may not be meant: precision, backend, seed, weights ..."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field
from pathlib import Path
from typing import Any

from mlpdeploy.artifact import decisions
from mlpdeploy.artifact.decisions import LEFT_OUT, PUT_IN, SET
from mlpdeploy.artifact.lookup import backend_of
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.commands.baseline import Baseline
from mlpdeploy.selection import Selection

Pair = tuple[str, Any, Any]
"""What is compared, of the baseline and of the candidate."""

_ELSEWHERE = ("name", "checkpoint", "calibration", "out")
"""Fields of a selection that say where something lies, or that are compared by what they name."""


def differences(other: Baseline, artifact: Artifact, threads: int) -> list[str]:
    """A line for each thing that is not alike: `precision: the baseline has fp16, the candidate fp32`."""
    if other.artifact is not None:
        theirs: Mapping[str, Any] = other.artifact.manifest
        weights, with_threads = theirs.get("weights", {}), threads
    else:
        assert other.document is not None
        theirs = other.document
        weights = {"text": theirs["network"]["weights"], "sha256": theirs["network"].get("weights_sha256")}
        with_threads = theirs["settings"]["threads"]
    before, after = theirs["selection"], artifact.manifest["selection"]
    pairs: list[Pair] = [] if other.interpreter is None else _environments(theirs, artifact)
    pairs += [_field(field, before, after) for field in Selection.fields() if field.name not in _ELSEWHERE]
    pairs += [("threads", with_threads, threads), _calibration(before, after)]
    pairs.append(_weights(weights, artifact.manifest["weights"]))
    if other.artifact is not None:
        pairs.append(("decisions of a search", _decided(theirs), _decided(artifact.manifest)))
    return [f"{what}: the baseline has {_words(a)}, the candidate {_words(b)}" for what, a, b in pairs if a != b]


def _field(field: Field[Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> Pair:
    """A field of a selection; in a version that does not know it, it is as usual."""
    usual = list(field.default) if isinstance(field.default, tuple) else field.default
    return field.name.replace("_", " "), before.get(field.name, usual), after.get(field.name, usual)


def _environments(theirs: Mapping[str, Any], artifact: Artifact) -> list[Pair]:
    """Versions, the engine's library first, what it executes, and which rules and forms fired otherwise."""
    ours = artifact.manifest
    versions, here = theirs["versions"], ours["versions"]
    first = dict.fromkeys([*backend_of(artifact).packages, "mlpdeploy", "torch", "python", *here, *versions])
    pairs: list[Pair] = [(name, versions.get(name), here.get(name)) for name in first]
    pairs.append(("precision that is executed", theirs["facts"].get("executed"), ours["facts"].get("executed")))
    fired, firing = _fired(theirs), _fired(ours)
    names = [name for name in dict.fromkeys([*firing, *fired]) if fired.get(name) != firing.get(name)]
    before, after = ([f"{name} {one[name]} times" for name in names if name in one] for one in (fired, firing))
    return [*pairs, ("rules and forms that fired", before, after)]


def _fired(manifest: Mapping[str, Any]) -> dict[str, int]:
    """How often each rule of the graph and form of the file did."""
    return {one["name"]: one["fired"] for part in ("rules", "forms") for one in manifest.get(part, ()) if one["fired"]}


def _weights(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> tuple[str, str, str]:
    """Of files and of networks in hand by their content where both are known, else by what they are called."""
    hashes, texts = ([str(one.get(key) or "") for one in (theirs, ours)] for key in ("sha256", "text"))
    if not all(hashes):
        return "weights", texts[0], texts[1]
    before, after = (f"{text}, SHA-256 {digest[:10]}" for text, digest in zip(texts, hashes, strict=True))
    return ("weights", before, after) if hashes[0] != hashes[1] else ("weights", "", "")


def _decided(manifest: Mapping[str, Any]) -> list[str]:
    """The changes that were kept."""
    found = decisions.of_manifest(manifest)
    return [] if found is None else [f"{name} {how}" for how in (LEFT_OUT, PUT_IN, SET) for name in found.kept(how)]


def _calibration(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, str | None, str | None]:
    """By where it lies, from whichever folder that was said."""
    given = (one.get("calibration") for one in (before, after))
    first, second = (None if one is None else str(Path(one).resolve()) for one in given)
    return "calibration", first, second


def _words(value: Any) -> str:
    if value is None or value == []:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
