"""The Hugging Face Hub, where pretrained weights lie, and the configurations of networks that `hf-hub:` names.

Its client tries for minutes to reach what does not answer. So it is asked for one file first, once and for seconds;
where nothing answers, what its cache on this machine holds is used, or there is one line.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlpdeploy.errors import InputError, MachineLacks
from mlpdeploy.selection.choice import NetworkChoice
from mlpdeploy.zoo.recipe import HUB

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""What files of weights are called on the Hub."""
SECONDS = 5
"""How long the Hub may be silent when it is asked whether it is there."""


def fetching(choice: NetworkChoice) -> str | None:
    """What making a network takes from the Hub, in words; None where it needs nothing from there."""
    what = ["configuration"] if choice.name.startswith(HUB) else []
    what += ["weights"] if choice.pretrained else []
    if not what:
        return None
    return f"{' and '.join(what)} of {choice.name}: from the Hugging Face Hub, or from its cache on this machine"


@contextmanager
def reached(repository: str, *wanted: Sequence[str]) -> Iterator[None]:
    """Within, timm finds the files of a repository (`owner/model`, perhaps with @revision), and nothing is printed.

    `wanted` are the files, each by the names that it may have. Where the Hub does not answer, its cache is read
    alone. Raises MachineLacks where that lacks a file, InputError where the Hub answers that it has none.
    """
    from huggingface_hub import constants

    offline = constants.is_offline_mode()
    reason = "HF_HUB_OFFLINE is set" if offline else _silence(repository, wanted[0])
    if reason is not None and not all(_cached(repository, names) for names in wanted):
        raise unreachable(repository, reason)
    constants.HF_HUB_OFFLINE = reason is not None
    try:
        with quiet():
            yield
    finally:
        constants.HF_HUB_OFFLINE = offline


@contextmanager
def quiet() -> Iterator[None]:
    """Within, the Hub's client prints nothing: no progress, no retries; a failure is told once."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    logger, shown = logging.getLogger("huggingface_hub"), not are_progress_bars_disabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()
        logger.setLevel(level)


def unreachable(repository: str, reason: str) -> MachineLacks:
    """What is said where files of a repository cannot be had."""
    return MachineLacks(
        f"{repository} could not be fetched from the Hugging Face Hub, and its cache here lacks it ({reason}): "
        "check the network access; weights may also come from a file, --checkpoint FILE"
    )


def commit(repository: str) -> str | None:
    """The commit whose weights the Hub's cache has for a repository, which are those that timm read last."""
    found = _cached(repository, WEIGHTS)
    return None if found is None else found.parent.name


def _silence(repository: str, names: Sequence[str]) -> str | None:
    """Why the Hub does not give a file that has one of these names; None where it does.

    Raises InputError where it says that there is no such repository, or that it is not for this user.
    """
    import huggingface_hub as hub
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError

    from mlpdeploy.system.guest import one_line  # which imports torch

    name, revision = _parts(repository)
    try:
        for file in names:
            url = hub.hf_hub_url(name, file, revision=revision, endpoint=constants.ENDPOINT)
            try:
                found = hub.get_hf_file_metadata(url, timeout=SECONDS)
            except EntryNotFoundError:
                continue
            return None if found.etag and found.commit_hash else "what answers there is not the Hub"
    except Exception as error:  # whatever the HTTP client of this version raises
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403, 404):
            raise InputError(
                f"the Hugging Face Hub has no {repository} that you may read ({status}): check the name; "
                "for a private or gated one log in, with `hf auth login` or HF_TOKEN"
            ) from error
        return one_line(error)
    raise InputError(f"{repository} on the Hugging Face Hub is no model of timm's: it has no {' or '.join(names)}")


def _cached(repository: str, names: Sequence[str]) -> Path | None:
    """Where the first of these files that is in the Hub's cache lies."""
    import huggingface_hub as hub

    name, revision = _parts(repository)
    found: list[Any] = [hub.try_to_load_from_cache(name, file, revision=revision) for file in names]
    return next((Path(path) for path in found if isinstance(path, str)), None)


def _parts(repository: str) -> tuple[str, str | None]:
    name, _, revision = repository.partition("@")
    return name, revision or None
