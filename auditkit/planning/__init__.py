"""Before a download or a run: does a model do what an audit needs, does the run fit, how long will it take?

In: a model's text or a parameter file. Out: what check.py found, the plan of memory, calls and time, measured speed.
Start with check.py and plan.py; memory.py holds the formulas, sizes.py the sizes they take.
Imports nearly all rooms, for it tries in small what a run does in large; of the stages only
notebook 00 asks it (setup.py).
"""
