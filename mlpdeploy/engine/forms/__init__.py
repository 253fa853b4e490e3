"""Forms of the ONNX file: one rewrite for engines that take it better for each public module (see `engine.form`).

A module's `rewrite(model, ...)` gives a model of the same function, and at how many places it is another. Its first
line says what it does and for which engine; it imports `engine` below the backends, and no backend.
"""
