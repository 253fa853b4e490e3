"""An artifact on the Hugging Face Hub, with a model card that is made from its report."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlpdeploy.artifact import store, trust
from mlpdeploy.artifact.copying import copy
from mlpdeploy.artifact.lookup import backend_of
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.errors import InputError, MachineLacks, MlpdeployError
from mlpdeploy.evidence.report import markdown, reporting
from mlpdeploy.network.hub import SECONDS, quiet
from mlpdeploy.zoo.recipe import REPOSITORY

CARD = "README.md"
LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def push(
    artifact: Artifact, repository: str, *, license: str | None = None, private: bool = False, dry_run: bool = False
) -> dict[str, Any]:
    """Upload an artifact, with what was found about it, to `owner/name`; gives its files, its card, and where it is.

    The repository is made where there is none. `license` stands in the card as it is given. A `dry_run` asks nobody and
    uploads nothing. Raises InputError for a name that the Hub cannot have, where the repository is public and
    `private` was asked for, and where one is not logged in or may not write there; MachineLacks where nothing answers.
    """
    if not re.fullmatch(REPOSITORY, repository):
        raise InputError(f"{repository!r} is no repository of the Hugging Face Hub: give owner/name")
    text = card(artifact, repository, license)
    named = [store.MANIFEST, *artifact.manifest["files"], *store.ATTACHED]
    files = [name for name in named if (artifact.folder / name).is_file()]
    found = {"repository": repository, "files": [CARD, *files], "card": text}
    return found | {"commit": None if dry_run else _upload(artifact, repository, text, private)}


def card(artifact: Artifact, repository: str, license: str | None = None) -> str:
    """The text of a repository's README.md: what the Hub reads, how the engine is loaded, and its report."""
    if license is not None and not re.fullmatch(r"[\w.+-]+", license):
        raise InputError(f"--license {license!r}: give an identifier of the Hub's, such as apache-2.0")
    manifest = artifact.manifest
    facts: dict[str, Any] = {"library_name": "mlpdeploy", "tags": ["mlpdeploy", manifest["backend"]]}
    facts |= {} if license is None else {"license": license}
    if (base := manifest["weights"].get("repository")) is not None:
        facts["base_model"] = base.partition("@")[0]
    lines = [f"{name}: {json.dumps(value)}" for name, value in facts.items()]  # each is YAML too
    code = backend_of(artifact).code
    trusted = "" if code is None else ", trusted=True"
    example = [
        "import mlpdeploy",
        "from huggingface_hub import snapshot_download",
        "",
        f'engine = mlpdeploy.load(snapshot_download("{repository}", local_dir="engine"){trusted})',
    ]
    warned = [] if code is None else [f"The engine holds {code}: load it only if you trust who made it."]
    warned += [] if trust.is_own(manifest) else ["It was not built by who put it here."]
    parts = ["\n".join(["---", *lines, "---"]), markdown.block("python", example), *map(markdown.text, warned)]
    return "\n\n".join([*parts, reporting.in_markdown(artifact)])


def _upload(artifact: Artifact, repository: str, text: str, private: bool) -> str:
    """Gives the commit's address."""
    import huggingface_hub as hub

    with TemporaryDirectory() as kept, quiet(), _told(repository):
        _require_login()
        folder = copy(artifact, Path(kept) / "engine").folder
        (folder / CARD).write_text(text, encoding="utf-8")
        api = hub.HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        if private and not api.model_info(repository).private:
            raise InputError(f"{repository} is public already: make it private there, or leave --private out")
        return str(api.upload_folder(repo_id=repository, folder_path=folder).commit_url)


def _require_login() -> None:
    """Ask the Hub who this is: once, and for seconds, which its client does not of itself."""
    import huggingface_hub as hub
    from huggingface_hub import constants

    if (token := hub.get_token()) is None:
        raise InputError(f"nobody is logged in to the Hugging Face Hub here: {LOGIN}")
    headers = {"authorization": f"Bearer {token}"}
    answer = hub.get_session().get(f"{constants.ENDPOINT}/api/whoami-v2", headers=headers, timeout=SECONDS)
    answer.raise_for_status()


@contextmanager
def _told(repository: str) -> Iterator[None]:
    """Turn what the Hub's client raises into one line."""
    from mlpdeploy.system.guest import one_line

    try:
        yield
    except MlpdeployError:
        raise
    except Exception as error:  # whatever the HTTP client of this version raises
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403, 404):
            raise InputError(
                f"the Hugging Face Hub does not let you write to {repository} ({status}): {LOGIN}"
            ) from error
        raise MachineLacks(
            f"{repository} could not be written to the Hugging Face Hub ({one_line(error)}): check the network access"
        ) from error
