"""Where images come from: a folder, a Hugging Face data set, or what another package adds.

In: the text of `images` in a parameter file. Out: a Source, which draws pictures by split, hands one out by its key,
and knows the true answers as far as there are any. Start with source.py, what a source is; load.py opens one. Imports
nothing but the modules beside the rooms.
"""
