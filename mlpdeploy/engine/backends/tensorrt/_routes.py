"""TensorRT's build routes, since 11.1: which settings its compiler has, and how the builder is given some of them.

`IBuilderConfig.all_build_routes` is a JSON text of settings, each with its values and its default; `build_route` takes
values of some of them (NVIDIA, "Global Performance Tuning"). Where the library has no tuner the text is empty.
"""

from __future__ import annotations

import json
import re
from typing import Any

from mlpdeploy.engine.build_route import WORD
from mlpdeploy.errors import BuildError, MachineLacks
from mlpdeploy.system import documents

DATABASE = {"tuner_options": [{"option": str, "allowed_values": str, "default_value": str}]}
SINCE = "11.1"
OPEN = "..."
"""Among the values of a setting: that these are no closed set."""


def offered(trt: Any) -> tuple[str, ...]:
    """Each value of each setting other than its default, such as `-copy_ppg=off`, in the library's own order.

    A setting without a closed set of values has none. Raises MachineLacks where the library offers nothing, and
    BuildError where its list cannot be read.
    """
    from polygraphy.backend.trt.util import get_trt_logger

    config = trt.Builder(get_trt_logger()).create_builder_config()
    if not hasattr(config, "all_build_routes"):
        raise MachineLacks(_too_old(trt))
    found = read(trt, config.all_build_routes)
    if not found:
        raise MachineLacks(f"TensorRT {trt.__version__} offers no build routes on this platform: drop --tactics")
    return found


def read(trt: Any, text: str) -> tuple[str, ...]:
    """What `offered` gives, of the library's JSON text. Raises BuildError."""
    if not text.strip():
        return ()
    try:
        database = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BuildError(f"TensorRT {trt.__version__}: its list of build routes is no JSON") from error
    if (problem := documents.wrong(database, DATABASE)) is not None:
        raise BuildError(f"TensorRT {trt.__version__}: its list of build routes cannot be read: {problem}")
    words = (
        f"{one['option']}={value}"
        for one in database["tuner_options"]
        for value in _values(one["allowed_values"])
        if value != one["default_value"]
    )
    return tuple(dict.fromkeys(word for word in words if WORD.fullmatch(word)))


def ask(trt: Any, config: Any, route: str) -> None:
    """Give the builder's configuration a route. Raises BuildError where it does not take it.

    What it refuses it only logs, so what it has then is read back.
    """
    if not route:
        return
    if not hasattr(config, "build_route"):
        raise BuildError(_too_old(trt))
    config.build_route = route
    lacking = [word for word in route.split() if word not in config.build_route.split()]
    if lacking:
        raise BuildError(
            f"TensorRT {trt.__version__} does not take {lacking[0]} of the build route: it has no such setting, or no "
            "such value of it"
        )


def _values(allowed: str) -> list[str]:
    """`-name=[a|b]` as a and b; nothing where the set is open."""
    found = re.search(r"\[([^\]]*)\]", allowed)
    if found is None or OPEN in found[1]:
        return []
    return [value for part in found[1].split("|") if (value := part.strip())]


def _too_old(trt: Any) -> str:
    return f"TensorRT {trt.__version__} has no build routes, which {SINCE} brought: pip install -U tensorrt"
