"""What the values of options must be: each check raises InputError, in one line."""

from __future__ import annotations

import difflib
import math
import pkgutil
import re
from collections.abc import Sequence

from mlpdeploy.engine import form
from mlpdeploy.errors import InputError
from mlpdeploy.graph import rules


def distinct(flag: str, names: Sequence[str]) -> None:
    for name in names:
        if not re.fullmatch(r"[\w.-]{1,100}", name):
            raise InputError(f"{flag} {name!r}: give letters, digits, and . _ -")
        if list(names).count(name) > 1:
            raise InputError(f"{flag}: {name!r} stands there twice")


def one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{what} {value!r} is not known: choose one of {', '.join(known)}")


def rule_names() -> list[str]:
    """A rule is a file of `graph/rules/`; to know its name it need not be imported, which would take torch."""
    return [*(module.name for module in pkgutil.iter_modules(rules.__path__)), rules.LAYOUT]


def known_rule(name: str, forms: Sequence[str] = ()) -> None:
    known = [*rule_names(), *forms]
    if name not in known and name in form.names():
        raise InputError(f"{name} is a form of the file, and on wherever it serves: only --disable-rule takes it")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"the rules are {', '.join(known)}"
        raise InputError(f"no rule is named {name!r}: {hint}")


def positive(option: str, seconds: float) -> float:
    """Seconds that something may take."""
    if not 0 < seconds < math.inf:
        raise InputError(f"{option} {seconds:g}: give seconds above 0")
    return seconds


def at_least(what: str, value: int | None, least: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise InputError(f"{what} {value!r}: it must be a whole number")
    if value is not None and value < least:
        raise InputError(f"{what} {value}: it must be at least {least}")
