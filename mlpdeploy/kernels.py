"""Where the code of `plugins/` is: inside the package where it was installed, beside it in a checkout."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from mlpdeploy.shipped import shipped

_PACKAGE = "mlpdeploy.plugins"


def folder() -> Path:
    """The folder of the plugins."""
    return shipped("plugins")


@cache
def version() -> str:
    """Twelve hexadecimal digits that change with any file of the plugins."""
    digest = hashlib.sha256()
    for path in sorted(folder().rglob("*.py")):
        digest.update(path.relative_to(folder()).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def load(module: str) -> ModuleType:
    """`plugins/a/b.py` for "a.b", imported as `mlpdeploy.plugins.a.b`, wherever the folder lies."""
    if _PACKAGE not in sys.modules:
        spec = ModuleSpec(_PACKAGE, None, is_package=True)
        spec.submodule_search_locations = [str(folder())]
        sys.modules[_PACKAGE] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"{_PACKAGE}.{module}")
