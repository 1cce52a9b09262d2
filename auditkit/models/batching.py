"""Work in batches that fit: one that does not is halved, and so are those after it."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Protocol

from accelerate.utils.memory import should_reduce_batch_size

from auditkit.errors import AuditError
from auditkit.models.offload import free_memory

WRITER = "give it fewer pixels (?max_pixels=...) or bits (?bits=4), or let the models take turns (memory: turns)"


class Batched(Protocol):
    """Whatever works in batches: a model that writes, a pipeline that makes images."""

    name: str
    batch_size: int


def in_batches(
    model: Batched,
    texts: Sequence[str],
    work: Callable[[list[int]], Any],
    advice: str = WRITER,
    together: Sequence[Hashable] | None = None,
) -> Iterator[tuple[list[int], Any]]:
    """(row numbers, work(row numbers)) batch after batch: longest texts first, so that little is padded and what does
    not fit in memory fails early. A batch that does not fit is halved, and so are those after it.

    Args:
        together: one for each text, such as the image that it is about; texts of the same one stand beside each other.

    Raises AuditError with `advice` when a single row does not fit.
    """
    longest: dict[Hashable, tuple[int, int]] = {}  # of what stands together: its longest text, and where it begins
    own = range(len(texts)) if together is None else together
    for i, (text, it) in enumerate(zip(texts, own, strict=True)):
        length, first = longest.get(it, (0, i))
        longest[it] = max(length, len(text)), first
    order = sorted(range(len(texts)), key=lambda i: (-longest[own[i]][0], longest[own[i]][1], -len(texts[i]), i))
    while order:
        rows, done = order[: model.batch_size], None
        try:
            done = (work(rows),)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            if len(rows) == 1:
                raise AuditError(f'"{model.name}": out of memory with a single picture; {advice}.') from error
        if done is None:  # here, where the exception no longer holds what filled the memory
            model.batch_size = (len(rows) + 1) // 2
            print(f'"{model.name}": out of memory with {len(rows)} prompts at once, going on with {model.batch_size}.')
            free_memory()
            continue
        order = order[len(rows) :]
        yield rows, done[0]
