"""What a matrix amounts to: its page, its Markdown, the best engines within limits, and what changed since a run.

engines.py -> best.py, changes.py -> result.py -> words.py, scatter.py -> page.py, summary.py
"""
