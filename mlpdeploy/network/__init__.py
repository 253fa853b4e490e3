"""Which network, with which weights: a name, a path or a module in hand becomes a `Source`.

Imports the selection and what lies below it.
"""
