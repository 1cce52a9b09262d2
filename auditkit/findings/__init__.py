"""Findings: grouped into failure types, named, counted, put to the models again, estimated, reviewed by a person.

In: the scored probes of an audit. Out: failure types, what gates drop, the share of false findings, decisions.
Start with failure_types.py; grading.py and success.py ask the source for the truth, and only to
grade; keep.py notes it beside examples, for people.
Imports the rooms above; nothing here trains.
"""
