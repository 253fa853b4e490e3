"""mlpdeploy compiles MLP-style vision networks into inference engines and proves that they compute the same.

    import mlpdeploy
    engine = mlpdeploy.compile(network, example)                # a torch.nn.Module in hand becomes an Engine
    network = mlpdeploy.reference("vip_s", seed=0)              # a recipe's torch.nn.Module in eval mode
    artifact = mlpdeploy.build(mlpdeploy.Selection("vip_s"))    # what `mlpdeploy build vip_s` does
    result = mlpdeploy.verify(mlpdeploy.Selection("vip_s"))     # what `mlpdeploy verify vip_s` does

Importing this package imports neither torch nor any inference engine; the functions do, when they are called.
"""

from mlpdeploy import errors
from mlpdeploy._version import __version__ as __version__
from mlpdeploy.api import compile, load
from mlpdeploy.commands import bench, doctor, evaluate, history, inspect, regress
from mlpdeploy.handle import Engine
from mlpdeploy.network.finding import find
from mlpdeploy.network.source import reference
from mlpdeploy.pipeline import build, verify
from mlpdeploy.selection import Selection
from mlpdeploy.zoo.recipe import Recipe

__all__ = [
    "Engine",
    "Recipe",
    "Selection",
    "bench",
    "build",
    "compile",
    "doctor",
    "errors",
    "evaluate",
    "find",
    "history",
    "inspect",
    "load",
    "reference",
    "regress",
    "verify",
]
