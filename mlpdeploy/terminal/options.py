"""What the commands share: options, one for each field of a selection, and the selection that they make."""

from __future__ import annotations

import inspect
import json
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import Field, replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from mlpdeploy.artifact import trust
from mlpdeploy.artifact.lookup import at_path, is_part, is_path
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.errors import InputError
from mlpdeploy.precisions import PRECISIONS
from mlpdeploy.selection import Selection
from mlpdeploy.selection.choice import IMAGES, CalibrationChoice, EngineChoice, NetworkChoice
from mlpdeploy.selection.option import Option
from mlpdeploy.selection.service import ServiceChoice
from mlpdeploy.system import results, streams
from mlpdeploy.terminal.screen import Terminal
from mlpdeploy.zoo.recipe import kind, recipes


def _begin(incomplete: str, known: Iterable[str]) -> list[str]:
    return [one for one in known if one.startswith(incomplete)]


def _recipes(incomplete: str) -> list[str]:
    return _begin(incomplete, (name for recipe in recipes().values() for name in recipe.names))


def _precisions(incomplete: str) -> list[str]:
    return _begin(incomplete, PRECISIONS)


Name = Annotated[
    str,
    typer.Argument(
        help="A recipe (see list), timm:<model>, hf-hub:owner/model, or package.module:factory.",
        autocompletion=_recipes,
    ),
]
NameOrPath = Annotated[
    str,
    typer.Argument(
        metavar="NAME_OR_PATH",
        help="A network's name, as `build` takes it, or the folder of its artifact, without the options of the build.",
        autocompletion=_recipes,
    ),
]
TimedSizes = Annotated[str | None, typer.Option("--batch", metavar="N,...", help="Batch sizes to time.")]
Threads = Annotated[
    int | None, typer.Option(metavar="N", help="Threads of a CPU engine; default: all cores, regress: but one.")
]
Data = Annotated[
    str | None,
    typer.Option(metavar="DATA", help="To verify on: a folder of images, an .npz file or digits; default: noise."),
]
GithubBenchmark = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the engine's latency as github-action-benchmark reads it.")
]
Trust = Annotated[bool, typer.Option("--trust", help="Run code in an engine that somebody else built.")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Where artifacts lie.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout, and nothing else there.")]

DATA = (*IMAGES, "limit")
"""Fields about rows of data, which may be others than those at the build."""
PANELS: dict[type[Any], str] = {
    NetworkChoice: "Network",
    EngineChoice: "Engine",
    ServiceChoice: "Images in, answers out",
    CalibrationChoice: "INT8 and FP8",
}
"""Under which title `--help` has the fields of each choice."""
_FIELDS = {field.name: field for field in Selection.fields()}

Command = Callable[..., None]


def _called(field: Field[Any]) -> str:
    how: Option | None = field.metadata.get("option")
    flag = None if how is None else how.flag
    return field.name if flag is None else flag.partition("/")[0].removeprefix("--").replace("-", "_")


CALLED = {name: _called(field) for name, field in _FIELDS.items()}
"""What the fields of a selection are called among the arguments of a command: `gpu` of `gpus`, after `--gpu`."""


def choosing(*names: str, **usual: str) -> Callable[[Command], Command]:
    """A command that takes a Selection becomes one that is asked for it by options, one for each of these fields.

    What the command takes itself under the name of an option takes that option's place. `usual` are the defaults of
    fields that have another one here.
    """

    def made(words: dict[str, Any], own: Mapping[str, Any]) -> tuple[Selection]:
        return (selected(words),)

    return lambda command: _asked_for(command, names, Name, made, usual, given=1)


def opening(*names: str, network: bool = True) -> Callable[[Command], Command]:
    """As `choosing`, of a command that takes a Selection and an Artifact, None where no artifact's folder was named.

    The command takes `trust` too. One that only runs or exports the engine itself needs no `network`.
    """

    def made(words: dict[str, Any], own: Mapping[str, Any]) -> tuple[Selection, Artifact | None]:
        return opened(words, own["trust"], network=network and own.get("to") not in ("triton", "bundle"))

    return lambda command: _asked_for(command, names, NameOrPath, made, {}, given=2)


def _asked_for(
    command: Command,
    names: Iterable[str],
    name: Any,
    made: Callable[..., tuple[Any, ...]],
    usual: Mapping[str, str],
    *,
    given: int,
) -> Command:
    parameters = [*inspect.signature(command, eval_str=True).parameters.values()][given:]
    own = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
    taken = {one.name for one in own}
    asked = [_parameter(_FIELDS[field], usual.get(field)) for field in names if CALLED[field] not in taken]
    first = inspect.Parameter("name", inspect.Parameter.KEYWORD_ONLY, annotation=name)

    @wraps(command)
    def run(**words: Any) -> None:
        chosen = {one.name: words.pop(one.name) for one in (first, *asked)}
        command(*made(chosen, words), **words)

    signature = inspect.Signature([first, *asked, *own])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in signature.parameters.values()}
    return run


def _parameter(field: Field[Any], usual: str | None) -> inspect.Parameter:
    """The parameter of a command that a field is asked for by; its default is the `usual`, or the field's own."""
    how: Option = field.metadata["option"]
    hint, default = _HINTS[field.name], field.default if usual is None else usual
    if how.repeated or how.parse is not None:
        hint, default = (list[str] if how.repeated else str) | None, None
    completed = _precisions if field.name == "precision" else None
    flag = how.flag or f"--{field.name.replace('_', '-')}"
    panel = next((title for choice, title in PANELS.items() if field.name in choice.__dataclass_fields__), None)
    asked = typer.Option(flag, metavar=how.metavar, help=how.help, autocompletion=completed, rich_help_panel=panel)
    return inspect.Parameter(
        CALLED[field.name], inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, asked]
    )


_HINTS = typing.get_type_hints(Selection)


def selected(words: Mapping[str, Any]) -> Selection:
    """The selection from a command's own arguments; what is not among them is as usual."""
    values = {}
    for name, field in _FIELDS.items():
        if (option := CALLED[name]) not in words:
            continue
        how: Option | None = field.metadata.get("option")
        value = words[option]
        if how is not None and how.repeated:
            value = tuple(value or ())
        elif how is not None and how.parse is not None:
            value = field.default if value is None else how.parse(value)
        values[name] = value
    return Selection(**values)


def opened(words: Mapping[str, Any], trusted: bool, *, network: bool = True) -> tuple[Selection, Artifact | None]:
    """The selection from a command's own arguments; of an artifact's folder, the one it was built from, and itself.

    Raises InputError where an option says something else than the artifact does, and where the `network` is needed:
    InputError where the artifact does not hold it, ArtifactError where its name is somebody else's.
    """
    if not is_path(words["name"]):
        return selected(words), None
    artifact = at_path(Path(words["name"]))
    built = Selection.from_json(artifact.manifest["selection"])
    if network and kind(built.name) == "given":
        raise InputError(f"{artifact.folder} does not hold the network that it was compiled from: use mlpdeploy.load")
    if network and kind(built.name) == "user":
        trust.require_named(artifact, built.name, trusted)
    asked, usual = selected({**words, "name": built.name}), Selection(built.name)
    free = {"out", *DATA}
    for name in (name for name in _FIELDS if name not in free):
        if getattr(asked, name) not in (getattr(usual, name), getattr(built, name)):
            raise InputError(f"{artifact.folder} was built with {name} {getattr(built, name)}: leave that option out")
    said = {name: getattr(asked, name) for name in DATA if getattr(asked, name) is not None}
    return replace(built, out=asked.out, **said), artifact


def require_room(*paths: Path | None) -> None:
    """Raise InputError where one of the files that are asked for could not be written, or would take the place of
    another one or of a part of an artifact: before what is to be in it costs minutes."""
    files = [path for path in paths if path is not None]
    for path in files:
        if is_part(path):
            raise InputError(f"{path} is a part of an artifact: write to another file")
    kept = [path.resolve() for path in files if path.is_file() or not path.exists()]
    if twice := next((path for path in kept if kept.count(path) > 1), None):
        raise InputError(f"{twice}: two results are to be written there; give each a file of its own")
    results.require_room(*files)


def write(path: Path | None, content: Any, append: bool = False) -> None:
    """A file that was asked for: text, or JSON values. Raises InputError where it cannot be written."""
    if path is not None:
        text = content if isinstance(content, str) else json.dumps(content, indent=2, allow_nan=False) + "\n"
        results.write(path, text, append)


def keep(path: Path | None, content: Any, append: bool = False) -> None:
    """As `write`, of what was measured: where it cannot be written, that is one line, and the run goes on."""
    try:
        write(path, content, append)
    except InputError as error:
        warn(str(error))


@contextmanager
def printing() -> Iterator[None]:
    """Print a result: where stdout takes no more, that is one line, and the exit code tells the rest."""
    try:
        with streams.as_long_as_read():
            yield
    except OSError as error:
        streams.unheard(sys.stdout)
        warn(f"stdout cannot be written ({error.strerror or error})")


def warn(line: str) -> None:
    """One line on stderr."""
    Terminal(stderr=True, soft_wrap=True).print(f"warning: {line}", style="yellow", markup=False, highlight=False)


def print_json(document: Any) -> None:
    """One document, and nothing else, on stdout."""
    with streams.as_long_as_read():
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
