"""onnxscript's own simplifications, in time linear in the size of the model.

Its `optimize` looks, at every node, through the whole model for a second slice that would make a split of two; a
network of ten thousand nodes takes minutes. These are its passes and its rules without that one, of those that
ONNX made from a network can need, and that change no number. For they do in the rest, as onnxscript 0.7 has them:
- x + 0, x - 0, x * 1 and x / 1 are found with a tolerance, in which 1e-8 is 0 and 1 + 1e-6 is 1;
- two bounds become one as if their order did not matter: clamp(2, 3) of clamp(0, 1), ReLU of clamp(-3, -1), and the
  bounds of two clamps of one value get one name;
- a ScatterND that adds to every row becomes what it adds;
- a batch norm goes into a convolution by arithmetic in the precision of the file, where a variance can be 0.
Engines do each of these themselves where it is right.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common as rules

ROUNDS = 2

RULES = (
    rules.cast_cast_rule,
    rules.cast_constant_of_shape_rule,
    rules.cast_constant_of_shape_without_value_rule,
    rules.collapse_slice2_rule,
    rules.collapse_slice_rule,
    rules.flatten_to_reshape_rule,
    rules.normalize_pad_format_conv_rule,
    rules.fuse_pad_into_conv_rule,
    rules.materialize_reshape_shape_rule,
    rules.no_op_cast_rule,
    rules.no_op_dynamic_scatter_nd_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.one_reshape_matmul_reshape_rule,
    rules.remove_optional_bias_from_conv_rule,
    rules.remove_optional_bias_from_conv_transpose_rule,
    rules.remove_optional_bias_from_gemm_rule,
    rules.reshape_reshape_rule,
    rules.squeeze_reshape_1d_rule,
    rules.successive_relu_rule,
    rules.transpose_transpose_rule,
    rules.two_reshapes_matmul_reshape_rule,
    rules.unsqueeze_unsqueeze_rule,
)


def simplify(model: ir.Model) -> None:
    """Fold constants, apply RULES, and share what is computed twice; in place."""
    common.InlinePass()(model)
    clean = (common.RemoveUnusedNodesPass(), common.RemoveUnusedFunctionsPass(), common.RemoveUnusedOpsetsPass())
    rewriting = RewritePass(RULES)
    for _ in range(ROUNDS):
        optimizer.fold_constants(model, onnx_shape_inference=True)
        _rewrite(model, rewriting)
        for step in clean:
            step(model)
    finishing: tuple[ir.passes.PassBase, ...] = (
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )
    for last in finishing:
        last(model)


def _rewrite(model: ir.Model, rules: RewritePass) -> None:
    """Apply rules; what takes the place of a node keeps what is known of that: which operation it stems from."""
    known = {output.name: node.meta for node in model.graph for output in node.outputs}
    rules(model)
    for node in model.graph:
        for output in node.outputs:
            for key, told in known.get(output.name, {}).items():
                node.meta.setdefault(key, told)
