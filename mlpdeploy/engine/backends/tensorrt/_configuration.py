"""What TensorRT's builder is asked for, through Polygraphy's configuration, and the engine that it makes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mlpdeploy.engine.backends.tensorrt import _features, _polygraphy, _routes
from mlpdeploy.engine.nvidia import CURRENT
from mlpdeploy.errors import BuildError

if TYPE_CHECKING:
    from mlpdeploy.engine.backend import BuildRequest


def set_tf32(trt: Any, config: Any, wanted: bool) -> None:
    """TF32 is on by default: leave it on only where it was asked for. Raises BuildError where it cannot be had."""
    flag = getattr(trt.BuilderFlag, "TF32", None)
    if flag is None:
        if wanted:
            raise BuildError(f"TensorRT {trt.__version__} has no TF32 builder flag; ask for fp32, fp16 or bf16")
        return
    (config.set_flag if wanted else config.clear_flag)(flag)


def config(
    trt: Any,
    flavour: str,
    request: BuildRequest,
    network: Any,
    gpus: list[tuple[int, int]] | None,
    monitor: Any,
    cache: str | None,
) -> Callable[..., Any]:
    """A Polygraphy loader of the builder's configuration; for RTX, `gpus` are what the engine is for."""
    from polygraphy.backend.tensorrt_rtx import CreateConfigRTX
    from polygraphy.backend.trt import CreateConfig, PostprocessConfig

    common: dict[str, Any] = {
        "profiles": [_profile(network, *one) for one in request.batch.each],
        "builder_optimization_level": request.level,
        "progress_monitor": monitor,
        **_features.options(trt, request.features),
        "load_timing_cache": cache if cache and os.path.getsize(cache) else None,
    }
    if flavour == "tensorrt-rtx":
        config = CreateConfigRTX(use_gpu=CURRENT in request.gpus, compute_capabilities=gpus, **common)
    else:
        config = CreateConfig(**common)

    def finish(builder: Any, network: Any, made: Any) -> None:
        set_tf32(trt, made, request.precision == "tf32")
        _routes.ask(trt, made, request.route)

    made: Callable[..., Any] = PostprocessConfig(config, finish)
    return made


def _profile(network: Any, low: int, opt: int, high: int) -> Any:
    from polygraphy.backend.trt import Profile

    profile = Profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        rest = tuple(tensor.shape)[1:]
        profile.add(tensor.name, (low, *rest), (opt, *rest), (high, *rest))
    return profile


def serialised(network: Any, config: Any, cache: str | None, monitor: Any, errors: list[str]) -> bytes:
    """The engine of a network. Raises BuildError, in TensorRT's words, or what stopped the build."""
    from polygraphy.backend.trt import engine_bytes_from_network
    from polygraphy.exception import PolygraphyException

    try:
        with warnings.catch_warnings():
            # Polygraphy gives every configuration a timing cache, which TensorRT-RTX deprecates and ignores.
            warnings.filterwarnings("ignore", ".*Timing cache operations are no-ops", DeprecationWarning)
            plan = bytes(engine_bytes_from_network(network, config=config, save_timing_cache=cache))
    except PolygraphyException as error:
        if monitor.raised is not None:
            raise monitor.raised from None
        raise BuildError(_polygraphy.message("TensorRT cannot build the network", errors, error)) from error
    if monitor.raised is not None:
        raise monitor.raised
    return plan
