"""How a page is made of a template beside this file: what every page has, and how values become text.

Jinja escapes every value; only the pictures, which escape their own text, are trusted to be markup.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlpdeploy.errors import MachineLacks
from mlpdeploy.evidence.report.words import launches_text, moving_facts
from mlpdeploy.system.text import clean, megabytes

FOLDER = Path(__file__).parent


def require(*libraries: str) -> None:
    """Raises MachineLacks, one line, where one of the libraries that draw a page is not installed."""
    from importlib.util import find_spec

    missing = [name for name in libraries if find_spec(name) is None]
    if missing:
        raise MachineLacks(f"the page needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def rendered(template: str, values: Mapping[str, Any]) -> str:
    """The HTML of a template and its values. Raises KeyError where a value lacks something that the template reads."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_cleaned,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"error": error, "ms": ms, "count": count, "when": when, "breakable": _breakable}
    environment.filters |= {"launches": launches_text, "moving": moving_facts, "megabytes": megabytes}
    style = markup((FOLDER / "style.css").read_text(encoding="utf-8"))
    try:
        return environment.get_template(template).render({**values, "style": style})
    except jinja2.UndefinedError as undefined:
        raise KeyError(str(undefined)) from undefined


def markup(text: str) -> Any:
    """Text that is HTML already."""
    from markupsafe import Markup

    return Markup(text)


def error(value: float | None) -> str:
    """A relative error; None stands for one that is not finite."""
    return "not finite" if value is None else f"{value:.1e}" if value else "0"


def ms(value: float) -> str:
    """Milliseconds, or another number, in three digits."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def when(value: str) -> str:
    """A point in time to the minute: 2030-01-02 03:04 UTC."""
    return f"{value[:16].replace('T', ' ')} UTC" if value.endswith("+00:00") else value


def count(value: float) -> str:
    """A large number with its unit: 6.9 G."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _cleaned(value: Any) -> Any:
    """A value without characters that turn the direction of writing, or control what shows it otherwise."""
    from markupsafe import Markup

    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _breakable(name: str) -> Any:
    """A name that may go on in the next line behind a dot, an underscore or a colon."""
    from markupsafe import escape

    return markup(re.sub(r"([._:])(?=\w)", r"\1<wbr>", str(escape(clean(name)))))
