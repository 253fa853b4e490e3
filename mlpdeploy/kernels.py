"""Where the code of `plugins/` is: inside the package where it was installed, beside it in a checkout."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

_PACKAGE = "mlpdeploy.plugins"


def folder() -> Path:
    """The folder of the plugins."""
    inside = Path(__file__).parent / "plugins"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "plugins"


def load(module: str) -> ModuleType:
    """`plugins/a/b.py` for "a.b", imported as `mlpdeploy.plugins.a.b`, wherever the folder lies."""
    if _PACKAGE not in sys.modules:
        spec = ModuleSpec(_PACKAGE, None, is_package=True)
        spec.submodule_search_locations = [str(folder())]
        sys.modules[_PACKAGE] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"{_PACKAGE}.{module}")
