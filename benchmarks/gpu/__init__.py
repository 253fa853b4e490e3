"""Everything that a GPU can show: `python -m benchmarks.gpu`."""
