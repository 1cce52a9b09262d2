"""Many runs: the notebooks of one run through papermill, rounds of audit and repair, studies of several conditions.

In: a parameter file, or a study's. Out: finished run folders, and tables over several of them.
Start with papermill.py; schedule.py tells it which notebook runs when, kernels.py in what. rounds.py and study.py run
it again and again, each in a process of its own.
Imports the rooms above; only the command line stands below.
"""
