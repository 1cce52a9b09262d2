"""Counterfactual images: made anew from a caption, or changed by an edit command, through any diffusers pipeline.

In: an image and what the auditor wishes for. Out: a new image, or the reason why there is none; store.py keeps both.
Start with make.py; quality.py checks an image without a model, clip_direction.py asks a CLIP model besides.
Imports runs, data and models; the references' word on an image is `consensus.vote.unmet_wishes`, asked by the audit.
"""
