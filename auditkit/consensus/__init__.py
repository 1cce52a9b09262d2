"""Do two answers mean the same, and what do the references agree on?

In: a target's answer and its references' answers to one question. Out: a Vote: the consensus, and whether the target
departs from it.
Start with vote.py; choose.py picks what decides that two answers are the same: text, embeddings, or a model as judge.
Imports models, for a judge is one; nothing here knows images or probes.
"""
