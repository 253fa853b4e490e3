"""An ONNX file through TensorRT's parser: its network, or one line about the node that the parser refuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlpdeploy.engine.backends.tensorrt import _polygraphy
from mlpdeploy.engine.base import one_line
from mlpdeploy.errors import BuildError

_WHAT = "TensorRT cannot parse the ONNX file"


def network(trt: Any, model: bytes, errors: Sequence[str], *, typed: bool, ahead: bool) -> tuple[Any, Any, Any]:
    """Builder, network and parser of a model, silent: TensorRT's errors go to `errors` (see `collected_errors`).

    `typed` asks for a strongly typed network, `ahead` for Python plugins that are compiled into the engine. Raises
    BuildError, with the node and the parser's own reason, where the parser refuses the model.
    """
    from polygraphy.backend.trt import util

    logger, flags = util.get_trt_logger(), trt.NetworkDefinitionCreationFlag
    wanted = [*(["STRONGLY_TYPED"] if typed else []), *(["PREFER_AOT_PYTHON_PLUGINS"] if ahead else [])]
    builder = trt.Builder(logger)
    made = builder.create_network(flags=sum(1 << int(getattr(flags, one)) for one in wanted if hasattr(flags, one)))
    trt.init_libnvinfer_plugins(logger, "")
    parser = trt.OnnxParser(made, logger)
    if not parser.parse(model) or parser.num_errors:
        raise BuildError(_refusal([parser.get_error(place) for place in range(parser.num_errors)], errors))
    return builder, made, parser


def _refusal(told: Sequence[Any], errors: Sequence[str]) -> str:
    """The first of the parser's errors in one line, then TensorRT's own lines."""
    if not told:
        return _polygraphy.message(_WHAT, errors, RuntimeError("it gave no reason"))
    first = told[0]
    where = f" at node {first.node_name()} ({first.node_operator()})" if first.node_name() else ""
    return "\n".join([f"{_WHAT}{where}: {_reason(first)}", *errors])


def _reason(error: Any) -> str:
    """What a parser's error says beyond the node's name, in one line; its kind where the check was a bare one."""
    said = (line for line in error.desc().splitlines() if line not in ("", "false"))
    # The name of an ErrorCode is no text in TensorRT 10.13.
    kind = f"{str(error.code()).rpartition('.')[2].replace('_', ' ').lower()} ({error.func()})"
    return one_line(next((line for line in said if not line.startswith("Invalid Node - ")), kind))
