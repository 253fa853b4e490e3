"""What every stage stands on: files, documents, processes, streams and text of this machine, and users' code in it.

Imports only errors.
"""
