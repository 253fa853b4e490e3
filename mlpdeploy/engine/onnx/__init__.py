"""A typed graph in, one ONNX file that serves every engine out."""
