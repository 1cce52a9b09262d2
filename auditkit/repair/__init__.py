"""Repair: the target is fine-tuned on its findings and measured on benchmarks before and after (paper, Sec. 3.3).

In: scored probes, labelled originals, a target. Out: an adapter (or whole weights), and accuracy by skill.
Start with prepare.py and training_set.py (what is learnt), then finetune.py (how) and before_after.py (what changed).
Imports the rooms above; labels are the references' consensus or the data's own, never the oracle's word.
"""
