"""Whether two answers to a question mean the same, each pair decided once."""

from collections.abc import Callable, Iterable

from auditkit.consensus.normalise import normalise, same_text

Pair = tuple[str, str, str]  # question, answer, answer


def normal_pair(question: str, a: str, b: str) -> Pair:
    """A pair under which all those are filed that differ only in form, or in which answer comes first.

    >>> normal_pair("What  is it?", "It's a sofa.", "Chair") == normal_pair("what is it?", "a chair", "sofa")
    True
    """
    first, second = sorted((normalise(a), normalise(b)))
    return " ".join(question.lower().split()), first, second


class Same:
    """Whether two answers to a question mean the same. Equal normalised texts do; others are put to `decide`.

    `decide` takes many pairs at once, as they were first worded, and is asked about each pair once, in either order:
    call `prepare` with all pairs before asking for single ones. Without it, different texts mean different things.
    `asked` counts what was decided.

    >>> alike = Same()
    >>> alike("three", "3"), alike("sofa", "chair", "what is it?")
    (True, False)
    """

    def __init__(self, decide: Callable[[list[Pair]], list[bool]] | None = None):
        self.decide, self.asked = decide, 0
        self._known: dict[Pair, bool] = {}

    def __call__(self, a: str, b: str, question: str = "") -> bool:
        if self.decide is None or same_text(a, b):
            return same_text(a, b)
        self.prepare([(question, a, b)])
        return self._known.get(normal_pair(question, a, b), False)

    def prepare(self, pairs: Iterable[Pair]) -> None:
        """Decide all pairs that are not decided yet, together."""
        todo: dict[Pair, Pair] = {}
        for pair in pairs if self.decide else ():
            _, first, second = known = normal_pair(*pair)
            if first and first != second and known not in self._known:  # "" is like nothing but itself
                todo.setdefault(known, pair)
        if todo and self.decide:
            self._known |= zip(todo, self.decide(list(todo.values())), strict=True)
            self.asked += len(todo)
