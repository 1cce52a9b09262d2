"""The miniature: a board world whose every answer is known, and tiny trained models with planted gaps.

In: seeds and tables of gaps (target.yaml, peer.yaml, …). Out: images with their truth, and models in the real classes.
Start with world.py and grammar.py (boards and questions), gaps.py (what a model gets wrong), build.py (how it is made).
Imports the rooms above. None of them imports it: they find it by the entry points in pyproject.toml, as they would a
package of yours, so the miniature is only ever named in a parameter file.
"""
