"""A typed graph in, an engine on disk and what runs it out.

Imports `graph` and what lies below it; TensorRT and its like are imported by `backends` alone.
"""
