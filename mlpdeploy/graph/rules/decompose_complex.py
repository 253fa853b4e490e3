"""Complex numbers become pairs of real ones, and Fourier transforms of fixed axes projections.

before: irfft2(rfft2(x) * weight)                      FFT token mixing: FNet, GFNet and their like
after:  linears by cosines and sines, products of real and imaginary parts

Engines have few transforms and no complex arithmetic, none of it in low precision; and a transform over the tokens is
token mixing like any other, which the layout pass can move. What has no real form keeps its complex operands.
"""

from __future__ import annotations

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor
from mlpdeploy.graph.matching.complex_pairs import PARTS, Decomposer, is_complex
from mlpdeploy.graph.rule import Refused, Rule

aten = torch.ops.aten


def find(editor: Editor, node: fx.Node) -> bool | None:
    """Whether there is anything complex about it."""
    return is_complex(node) or any(map(is_complex, node.all_input_nodes)) or None


def replace(editor: Editor, node: fx.Node, _: bool) -> fx.Node | Refused | None:
    """Its real form; of a complex result the parts, which its readers find with it."""
    of = Decomposer(editor, node)
    found = of.form(node)
    if found is None:
        of.keep()
        return Refused(f"{node.target} has no form in real numbers")
    if not is_complex(node):
        made: fx.Node = found
        return made
    node.meta[PARTS] = found
    return None


RULE = Rule("decompose_complex", "normalise", find, replace)
