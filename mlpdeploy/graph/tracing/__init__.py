"""A network in, a graph of whole ATen operations out, each with its place in the user's code."""
