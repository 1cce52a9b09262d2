"""The auditor: it looks at an image and writes what may trip the target, and learns to with GRPO.

In: images, a target, references. Out: texts, read as questions or wishes (runs/probe.py), and trained checkpoints.
Start with write.py (prompts, what it writes), then rewards.py (what a text is worth) and grpo.py (the training).
Imports what answers, votes and paints; it knows no truth, so the oracle cannot reach a reward.
"""
