"""The rules of the graph: each public module defines one as RULE, a `rule.Rule` or a `projection.Lowering`."""

LAYOUT = "propagate_layout"
"""Name of the layout pass, which lowerings belong to and which can be disabled like a rule."""
