"""The end of a text that a pipeline's text encoder could not read.

Pipelines wrap a prompt into chat templates and instructions, and read it up to lengths that they know alone. What their
tokenizers are really given tells what was cut, whatever the pipeline.
"""

import contextlib
from collections.abc import Iterator


class _Heard:
    """Put before a tokenizer's class: what it was made to cut is kept in `heard`."""

    def __call__(self, text=None, *more, **named):
        out = super().__call__(text, *more, **named)
        texts = [text] if isinstance(text, str) else list(text or [])
        if named.get("truncation") and (encodings := getattr(out, "encodings", None)):
            self.heard += [
                (id(self), whole, min((at for at, _ in _left_over(encoding)), default=len(whole)))
                for whole, encoding in zip(texts, encodings, strict=False)
            ]
        return out


def _left_over(encoding) -> list[tuple[int, int]]:
    """Where in the text the tokens stand that were cut off."""
    return [
        place
        for part in encoding.overflowing
        for place, special in zip(part.offsets, part.special_tokens_mask, strict=True)
        if not special
    ]


def _readers(pipe) -> list:
    """The tokenizers whose text the picture is made of. Beside another encoder CLIP only sets the tone, in one vector
    or in its first 77 tokens; it counts where there is none else."""
    found = [
        (getattr(part, "tokenizer", part), getattr(pipe, name.replace("tokenizer", "text_encoder"), None))
        for name, part in pipe.components.items()
        if hasattr(getattr(part, "tokenizer", part), "model_max_length")
    ]
    others = [tokenizer for tokenizer, encoder in found if not type(encoder).__name__.startswith("CLIP")]
    return others or [tokenizer for tokenizer, _ in found]


@contextlib.contextmanager
def listening(pipe) -> Iterator[list[tuple[int, str, int]]]:
    """While it lasts, (tokenizer, text, characters read of it) for each text that a tokenizer may cut."""
    heard: list[tuple[int, str, int]] = []
    kinds = {tokenizer: type(tokenizer) for tokenizer in _readers(pipe)}
    try:
        for tokenizer, kind in kinds.items():
            tokenizer.heard = heard
            tokenizer.__class__ = type(kind.__name__, (_Heard, kind), {"__module__": kind.__module__})
        yield heard
    finally:
        for tokenizer, kind in kinds.items():
            tokenizer.__class__ = kind
            vars(tokenizer).pop("heard", None)


def end_of(text: str, heard: list[tuple[int, str, int]]) -> str:
    """The end of a text that even the tokenizer that reads most of it cut off."""
    text = text.strip()
    ends = []
    for tokenizer in {key for key, _, _ in heard}:
        # some pipelines write in small letters; and a longer one may be another's, who has these words among his
        its = [(whole, read) for key, whole, read in heard if key == tokenizer and text.lower() in whole.lower()]
        if its:
            whole, read = min(its, key=lambda one: len(one[0]))
            ends.append(text[max(0, read - whole.lower().rindex(text.lower())) :].strip())
    return min(ends, key=len, default="")
