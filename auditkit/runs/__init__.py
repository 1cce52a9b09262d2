"""A run is a folder, and a stage is a folder in it.

In: the parameters of a run. Out: outputs/<run>/<NN_stage>/ with manifest.json, records.jsonl and DONE.
Start with folder.py, whose docstring says what a stage promises; inventory.py tells whether a finished one is whole;
probe.py holds what the records are about, the probe.
Imports no other room: what the others count or answer, they hand in.
"""
