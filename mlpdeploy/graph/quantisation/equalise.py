"""Input channels of wide and narrow range share the load between activation and weight.

before: x @ W^T                     one channel of x is 50 times the others, and rules the scale of all
after:  (x / s) @ (W * s)^T         s along the input channels, from both operands' ranges

Exact in real arithmetic. With one scale for all of x, a wide channel leaves the others few codes; its column of W is
narrow where the network was trained. The division goes into the scale and shift of a LayerNorm that nothing else
reads, and is one pointwise product elsewhere, so a site must gain for it.
Source: Xiao et al., SmoothQuant (arXiv 2211.10438), equation 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import fx

from mlpdeploy.graph.editor import Editor, weight
from mlpdeploy.graph.kinds import shape_of
from mlpdeploy.graph.quantisation.codes import Codes
from mlpdeploy.graph.quantisation.sites import Site, products
from mlpdeploy.graph.rewrite import Rewritten, copied, fold_constants

aten = torch.ops.aten

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
"""How much of the activations' range goes to the weights."""

GAIN_DB = 3.0
"""What a site must gain, by the estimate, for the product that it costs."""


@dataclass(frozen=True)
class Channels:
    """Of a site's activation, by input channel: the largest magnitude and the mean square."""

    largest: np.ndarray
    power: np.ndarray


def factors(matrix: torch.Tensor, site: Site, seen: Channels, codes: Codes) -> np.ndarray | None:
    """s by input channel, or None where the site's error is not estimated to fall by GAIN_DB."""
    columns = site.columns(matrix.double()).abs().numpy()  # (N, channels, rest)
    reach = columns.max(axis=(0, 2))
    known = (seen.largest > 0) & (reach > 0)
    if not known.any():
        return None
    before, best, found = _noise(columns, seen, np.ones_like(reach), codes), np.inf, None
    for strength in STRENGTHS:
        s = np.ones_like(reach)
        s[known] = seen.largest[known] ** strength / reach[known] ** (1 - strength)
        s[known] /= np.exp(np.log(s[known]).mean())
        if (noise := _noise(columns, seen, s, codes)) < best:
            best, found = noise, s
    return found if 10 * np.log10(before / max(best, 1e-300)) >= GAIN_DB else None


def _noise(columns: np.ndarray, seen: Channels, s: np.ndarray, codes: Codes) -> float:
    """The power of a site's error, rounding errors being independent, up to a constant.

    That of equal steps is a twelfth of their square; that of a share of a value is the same for every `s`.
    """
    activation, matrix = seen.largest / s, columns * s[:, None]
    step = activation.max() * codes.step / codes.largest
    steps = matrix.max(axis=(1, 2)) * codes.step / codes.largest
    equal = step**2 * (matrix**2).sum() + (steps**2).sum() * (seen.power / s**2).sum() * columns.shape[2]
    return float(equal + 24 * codes.share * (seen.power @ (columns**2).sum(axis=(0, 2))))


def equalise(rewritten: Rewritten, chosen: Mapping[str, Sequence[float]]) -> Rewritten:
    """The same function with the factors of `chosen` (by site) moved from activations to weights."""
    if not chosen:
        return rewritten
    module = copied(rewritten.module)
    editor = Editor(module, module.graph)
    found = products(module)
    for node in list(module.graph.nodes):
        if node.name in chosen:
            _equalise(editor, node, found[node.name], torch.as_tensor(chosen[node.name], dtype=torch.float64))
    module = fold_constants(module)
    module.recompile()
    return replace(rewritten, module=module)


def _equalise(editor: Editor, node: fx.Node, site: Site, s: torch.Tensor) -> None:
    source, matrix = node.args[site.activation], weight(editor.module, node.args[site.weight])
    assert isinstance(source, fx.Node) and matrix is not None
    name = str(node.args[site.weight].target)  # type: ignore[union-attr]
    scaled = site.scaled(matrix.double(), s).to(matrix.dtype)
    with editor.before(node):
        divided = _into_norm(editor, source, s) if site.channels == (-1,) else None
        if divided is None:
            inverse = site.broadcast(1 / s, shape_of(source)).to(matrix.dtype)
            constant = editor.constant(inverse, f"{name}_inverse", origin=node)
            divided = editor.call(aten.mul.Tensor, (source, constant), origin=node)
        weights = editor.constant(scaled, f"{name}_equalised", origin=node)
    args = list(node.args)
    args[site.activation], args[site.weight] = divided, weights
    node.args = tuple(args)


def _into_norm(editor: Editor, source: fx.Node, s: torch.Tensor) -> fx.Node | None:
    """`source` itself, its scale and shift divided by `s`, where it is a LayerNorm over one axis that is read once."""
    norm = source.target is aten.layer_norm.default
    if not norm or len(source.users) != 1 or list(source.args[1]) != list(s.shape):  # type: ignore[arg-type]
        return None
    given = [*source.args[2:4], None, None][:2]
    if any(operand is not None and weight(editor.module, operand) is None for operand in given):
        return None
    dtype = source.meta["val"].dtype
    vectors = []
    with editor.before(source):
        for operand, neutral in zip(given, (torch.ones_like(s), torch.zeros_like(s)), strict=True):
            vector = weight(editor.module, operand)
            vector = neutral if vector is None else vector.double()
            vectors.append(editor.constant((vector / s).to(dtype), f"{source.name}_equalised", origin=source))
    source.args = (*source.args[:2], *vectors, *source.args[4:])
    return source
