"""Models that look at an image and write: transformers, vLLM, or a server that speaks OpenAI's protocol.

In: the text that names a model (specs.py), images and prompts. Out: texts; answers.py files each one, so that no
question is put to a model twice.
Start with base.py, what any model does; load.py loads one; transformers.py is the engine that can also be trained.
Imports `runs` and `data` alone: a model does not know what its answers are for.
"""

import logging

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels for 4 bits on a CPU, which nobody wants
