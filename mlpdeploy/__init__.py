"""mlpdeploy compiles MLP-style vision networks into inference engines and proves that they compute the same.

    import mlpdeploy
    network = mlpdeploy.reference("vip_s", seed=0)              # torch.nn.Module in eval mode
    artifact = mlpdeploy.build(mlpdeploy.Selection("vip_s"))    # what `mlpdeploy build vip_s` does
    result = mlpdeploy.verify(mlpdeploy.Selection("vip_s"))     # what `mlpdeploy verify vip_s` does

Importing this package imports neither torch nor any inference engine; the functions do, when they are called.
"""

from mlpdeploy.pipeline import bench, build, doctor, history, inspect, regress, verify
from mlpdeploy.recipe import Recipe, find
from mlpdeploy.selection import Selection
from mlpdeploy.source import reference

__version__ = "0.1.0"

__all__ = [
    "Recipe", "Selection", "bench", "build", "doctor", "find", "history", "inspect", "reference", "regress", "verify",
]  # fmt: skip
