"""Many builds at once: a plan's jobs, each in processes of its own, here or wherever an executor takes them.

plan.toml -> jobs -> (shard) -> executor -> rows -> one document
plan.py      job.py  shards.py  here.py     row by run_job   evidence/documents/matrix.py
"""
