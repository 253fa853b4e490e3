"""A rewritten graph in, one whose every dtype is decided out."""
