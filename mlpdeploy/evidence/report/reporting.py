"""`mlpdeploy report`: the documents beside an engine become a page, Markdown, and a few lines in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlpdeploy.artifact import schema, store
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.errors import ArtifactError, InputError
from mlpdeploy.system import documents, results


def report(artifact: Artifact, *, html: Path | None = None, markdown: Path | None = None) -> dict[str, Any]:
    """Write the report about an artifact; gives the files that were written, what they lack, and verdicts in words.

    `html` and `markdown` are where to write it, each on its own; without both, report.html and report.md are written
    beside the engine. Raises ArtifactError where a document cannot be used, InputError where a file cannot be written,
    MachineLacks where a library that draws is missing.
    """
    from mlpdeploy.evidence.report.drawing import lacking
    from mlpdeploy.evidence.report.page import page
    from mlpdeploy.evidence.report.verdicts import verdicts

    if html is None and markdown is None:
        html, markdown = artifact.folder / store.PAGE, artifact.folder / store.REPORT
    texts, lacks = dict[Path, str](), list[str]()
    with _usable(artifact):
        if html is not None:
            outlines = store.attached(artifact, store.GRAPH)
            texts[html] = page(artifact.manifest, *_evidence(artifact), outlines)
            lacks += [reason] if outlines is not None and (reason := lacking()) is not None else []
        if markdown is not None:
            texts[markdown] = in_markdown(artifact)
        lines = [asdict(verdict) for verdict in verdicts(artifact.manifest, *_evidence(artifact))]
    for path, text in texts.items():
        try:
            results.write(path, text)
        except InputError as error:
            raise InputError(f"{error}: pass --html FILE or --markdown FILE") from error
    files = [str(path) for path in texts]
    return {"folder": str(artifact.folder), "files": files, "lacks": lacks, "verdicts": lines}


def in_markdown(artifact: Artifact) -> str:
    """The text of report.md, with everything that is known about the engine by now."""
    from mlpdeploy.evidence.report.summary import report as markdown

    with _usable(artifact):
        return markdown(artifact.manifest, *_evidence(artifact))


def _evidence(artifact: Artifact) -> tuple[dict[str, Any] | None, dict[str, Any] | None, dict[str, Any] | None]:
    """verification.json, bench.json and evaluation.json, where they are there and about these very files."""
    hashes = {name: facts["sha256"] for name, facts in artifact.manifest["files"].items()}
    verification, evaluation = (
        found if found is not None and found["files"] == hashes else None
        for found in (store.attached(artifact, name) for name in (store.VERIFICATION, store.EVALUATION))
    )  # fmt: skip
    bench = store.attached(artifact, store.BENCH)
    if bench is not None and (bench.get("kind"), bench.get("schema")) != ("bench", 1):
        raise ArtifactError(f"{artifact.folder / store.BENCH} is no result of this mlpdeploy's bench: measure it again")
    if bench is not None and (problem := documents.wrong(bench, schema.BENCH)) is not None:
        path = artifact.folder / store.BENCH
        raise ArtifactError(f"{path} is damaged or of another version ({problem}): measure it again")
    if bench is not None and bench["network"].get("model_sha256") != hashes[store.MODEL]:
        bench = None
    return verification, bench, evaluation


@contextmanager
def _usable(artifact: Artifact) -> Iterator[None]:
    """A document that lacks what a report reads becomes one line."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ArtifactError(
            f"a document in {artifact.folder} is damaged or of another version ({what}): build it again with --force"
        ) from error
