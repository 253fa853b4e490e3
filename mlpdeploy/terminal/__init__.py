"""The command line: options made of the selection's fields, and what is printed.

Imports everything, and nothing imports it.
"""
