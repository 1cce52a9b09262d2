"""A few examples to look at, from any source: labelled ones, or pictures with a question that fits them all."""

from auditkit.data.source import Example, Source

ANY_PICTURE = "What is in this picture?"


def one_of_each_skill(source: Source, seed: int, otherwise: int = 6) -> list[Example]:
    """The first held-out example of each benchmark; from a source without any, `otherwise` pictures with a question
    about anything, and no answer.
    """
    found = [examples[0] for examples in source.benchmarks(1).values() if examples]
    return found or [
        Example(f"{picture.key}/q0", picture.image, ANY_PICTURE, "")
        for picture in source.pictures("audit", otherwise, seed)
    ]
