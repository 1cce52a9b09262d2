"""The audit: the auditor asks about images it never saw, target and references answer, each probe gets its outcome.

In: auditor checkpoints, target, references, images. Out: records of all answers, then the same with their outcome.
Start with loop.py (asking and answering; batches.py does the work), then score.py (from answers to outcomes);
allocation.py and selection.py say who asks about which image, and which of several questions is asked; rounds.py and
search.py choose during the audit, by what was answered so far (frames.py, leads.py).
Imports the rooms above; scoring needs no model, unless one judges what means the same.
"""
