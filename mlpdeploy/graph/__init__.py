"""A network in, a typed graph out: traced, rewritten, each operation in its dtype.

Imports only `system`.
"""
