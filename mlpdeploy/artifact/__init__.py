"""What lies on disk: an engine and its documents, each whole or not at all, under a key of what it was made of.

Imports the network and what lies below it.
"""
