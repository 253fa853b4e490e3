"""A plan file and its jobs: TOML whose keys are the options of `build`, a list being several values, each in turn.

network = ["mixer_*", "vip_s7"]          every recipe of that name
precision = ["fp32", "fp16"]             the product of all lists is the table's jobs
verify = true                            what to do with each, beside building it
exclude = [{ network = "mixer_l*", precision = "fp32" }]
needs = { cpus = 2, memory = "8GiB" }

[[jobs]]                                 several tables: what stands above them is what they all begin with
backend = "openvino"
bench = { batch = [1, 8] }
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlpdeploy.engine.backend import Backend, backends
from mlpdeploy.engine.nvidia import CURRENT
from mlpdeploy.errors import InputError
from mlpdeploy.evidence.documents.matrix import ANY_GPU, Needs
from mlpdeploy.matrix.job import BUILD, ORDER, REGRESS, TIMED, Asked, Job
from mlpdeploy.matrix.naming import apart
from mlpdeploy.matrix.options import (
    CALIBRATED,
    FIELDS,
    NETWORK,
    SHOWN,
    STEPS,
    asked,
    choices,
    filled,
    known,
    needs,
)
from mlpdeploy.precisions import QUANTISED
from mlpdeploy.selection import FILES, OUT, Selection
from mlpdeploy.selection.parse import parse_sizes
from mlpdeploy.system import files
from mlpdeploy.zoo.recipe import canonical, recipes

JOBS, EXCLUDE, NEEDS = "jobs", "exclude", "needs"
MOST = 10_000
"""Jobs that a plan may have."""
FILLED = (*FILES, "calibration")
"""Fields that hold a path, in which braces are filled."""


@dataclass(frozen=True)
class Plan:
    """The jobs of a file, in its order, each once."""

    path: Path
    sha256: str
    out: Path
    jobs: tuple[Job, ...]

    def named(self) -> dict[str, str]:
        """What a document says of it."""
        return {"path": str(self.path), "sha256": self.sha256}


def read(path: Path, out: Path | None = None) -> Plan:
    """The jobs of a plan; artifacts lie in `out`, or where the plan says.

    Raises InputError, one line, where it cannot be read, or any of its jobs asks for what there is not.
    """
    try:
        text = files.read_text(path)
        table = tomllib.loads(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}): give a plan in TOML") from error
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"{path}: is no TOML ({reason})") from error
    where = str(path)
    top = {name: value for name, value in table.items() if name not in (JOBS, "out")}
    tables = _tables(where, table, JOBS) if JOBS in table else [{}]
    store = out or choices(where, "out", [table.get("out", str(OUT))])[0]
    found: dict[str, Job] = {}
    used: set[int] = set()
    for place, one in enumerate(tables):
        _expand(f"{where}: jobs[{place}]" if JOBS in table else where, top, one, store, found, used)
    _require_used(where, _tables(where, top, EXCLUDE), used)
    if not found:
        raise InputError(f"{where}: every job of it is excluded")
    known_backends = backends()
    jobs = [_with_gpu(job, known_backends.get(job.selection.backend)) for job in found.values()]
    return Plan(path, hashlib.sha256(text.encode()).hexdigest(), store, apart(jobs))


def _tables(where: str, table: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    given = table.get(name, [])
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise InputError(f"{where}: {name} must be tables: [[{name}]]")
    if name in table and not given:
        raise InputError(f"{where}: {name} is an empty list")
    return given


def _expand(
    where: str, top: Mapping[str, Any], table: Mapping[str, Any], out: Path, found: dict[str, Job], used: set[int]
) -> None:
    """Add the jobs of a table to those that are found; notes which exclusions of the plan were of use."""
    options = [name for name in FIELDS if name != "out"]
    known(where, [*top, *table], [*options, *STEPS, NEEDS, EXCLUDE])
    common, own = _tables(where, top, EXCLUDE), _tables(where, table, EXCLUDE)
    for one in (*common, *own):
        known(f"{where}: exclude", one, options)
    wanted = {**top, **table}
    if NETWORK not in wanted:
        raise InputError(f'{where}: says no network, as in network = ["mixer_*", "vip_s7"]')
    if wanted.get(BUILD) is False:
        raise InputError(f"{where}: build is false, and every job begins with it")
    steps = tuple(
        step
        for name in ORDER
        if (step := asked(where, name, wanted.get(name, name == BUILD))) is not None
    )  # fmt: skip
    needed = Needs(**{**needs(where, top.get(NEEDS, {})), **needs(where, table.get(NEEDS, {}))})
    for values in _products(where, wanted):
        fitting = [id(one) for one in (*common, *own) if _fits(one, values)]
        used.update(fitting)
        if not fitting:
            _add(where, found, _job(where, values, out, steps, needed))
    _require_used(where, own, used)


def _require_used(where: str, exclusions: Sequence[Mapping[str, Any]], used: set[int]) -> None:
    """Raise InputError for an exclusion that left no job out."""
    for one in exclusions:
        if id(one) not in used:
            told = ", ".join(f"{name} = {value!r}" for name, value in one.items())
            raise InputError(f"{where}: exclude {{ {told} }} leaves nothing out: is a value of it misspelt?")


def _products(where: str, wanted: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The values of a selection's fields, by name, for each of a table's jobs."""
    lists = {field.name: choices(where, called, wanted[called]) for called, field in FIELDS.items() if called in wanted}
    lists["name"] = [name for text in lists["name"] for name in _networks(where, text)]
    if (count := math.prod(map(len, lists.values()))) > MOST:
        raise InputError(f"{where}: has {count} jobs; a plan may have {MOST}")
    for values in itertools.product(*lists.values()):
        yield dict(zip(lists, values, strict=True))


def _networks(where: str, text: str) -> list[str]:
    """The recipes that a pattern names; of another text the network of that name."""
    if ":" in text or not any(sign in text for sign in "*?["):
        try:
            return [canonical(text)]
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    found = fnmatch.filter(recipes(), text)
    if not found:
        raise InputError(f"{where}: no recipe fits {text!r}; see `mlpdeploy list`")
    return found


def _fits(exclusion: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Whether a job has one of the values that an exclusion gives, for each of its options."""
    for called, given in exclusion.items():
        field, alike = FIELDS[called], choices(EXCLUDE, called, given)
        value = values.get(field.name, field.default)
        texts = [str(one) for one in alike if isinstance(one, str | Path)]
        if called == NETWORK:
            alike = [name for text in texts for name in _networks(EXCLUDE, text)]
        if value not in alike and not any(fnmatch.fnmatchcase(str(value), text) for text in texts):
            return False
    return True


def _job(where: str, values: Mapping[str, Any], out: Path, steps: Sequence[Asked], needed: Needs) -> Job:
    """A job without its name, which it has among the others (see `apart`)."""
    told = " ".join(str(values[name]) for name in SHOWN if name in values)
    if values.get("precision") not in QUANTISED:
        values = {name: value for name, value in values.items() if name not in CALIBRATED}
    try:
        plain = Selection(**{name: value for name, value in values.items() if name in SHOWN})
        paths = {name: filled(plain, str(values[name])) for name in FILLED if name in values}
        given = {name: Path(text) if name in FILES else text for name, text in paths.items()}
        selection = Selection(**{**values, **given}, out=out)
        return Job("", selection, tuple(_told_to(selection, step) for step in steps), needed)
    except InputError as error:
        raise InputError(f"{where} ({told}): {error}") from error


def _with_gpu(job: Job, backend: Backend | None) -> Job:
    """A job that needs a GPU of any kind, where it builds or times on one and the plan does not say which."""
    on_gpu = CURRENT in job.selection.gpus
    if backend is not None and backend.device({}) != "cpu":
        on_gpu |= backend.times_kernels or not backend.reads_file or any(one.name in TIMED for one in job.steps)
    return replace(job, needs=replace(job.needs, gpu=ANY_GPU)) if on_gpu and job.needs.gpu is None else job


def _told_to(selection: Selection, step: Asked) -> Asked:
    """A command with the braces of its options filled; its sizes are those that the engine takes."""
    batch = step.options.get("batch")
    if step.name == REGRESS and batch is not None:
        text, profile = ",".join(map(str, batch)) if isinstance(batch, list) else str(batch), selection.profile
        if not all(profile.min <= size <= profile.max for size in parse_sizes(text)):
            raise InputError(f"regress.batch {text}: the engine takes batch {profile.min} to {profile.max}")
    return Asked(step.name, {name: filled(selection, value) for name, value in step.options.items()})


def _add(where: str, found: dict[str, Job], job: Job) -> None:
    """A job, or what it asks for more of the same engine."""
    identity = repr(sorted(job.selection.to_json().items()))
    before = found.get(identity)
    if before is None:
        found[identity] = job
        if len(found) > MOST:
            raise InputError(f"{where}: a plan may have {MOST} jobs")
        return
    steps = {step.name: step for step in before.steps}
    for step in job.steps:
        if step.name == BUILD and not (step.options and steps[BUILD].options):
            steps[BUILD] = step if step.options else steps[BUILD]
        elif steps.setdefault(step.name, step) != step:
            raise InputError(f"{where}: asks twice for {step.name} of {job.selection.name}, with different options")
    if job.needs != before.needs:
        raise InputError(f"{where}: asks twice for {job.selection.name}, with different needs")
    found[identity] = Job("", job.selection, tuple(steps[name] for name in ORDER if name in steps), job.needs)
