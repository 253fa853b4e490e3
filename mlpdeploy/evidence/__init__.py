"""An engine in, what is known of it out: proof, latency, and the documents and reports that tell it.

Imports the artifact and what lies below it.
"""
