"""A model asked whether two answers mean the same, and what any such judge is worth on pairs labelled by hand.

The paper does not say which judge it used. A model is put the fixed prompt of prompts/same.txt, many pairs at once, as
LAVE does (https://arxiv.org/abs/2310.02567) but for two answers instead of an answer and a label, without the picture,
and with yes or no instead of grades. It may be anything that writes: a vision-language model, a language model without
eyes, or a server. A reply that is neither yes nor no counts as no.

What is compared was written by the very models that are audited, so it may give orders. Question and answers stand in
quotation marks that nothing in them can close (`text.quoted`), and the prompt says what they are; a model may obey them
all the same: of 40 such answers docs/trust.md has how many turned a verdict.

The labels of same_pairs.jsonl are ours, by this rule: two answers are the same if whoever asked would learn the same
from both. So "poodle" and "dog" differ, whatever the one implies of the other.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path

from auditkit import specs
from auditkit.consensus.same import Pair, normal_pair
from auditkit.errors import AuditError, Unfinished
from auditkit.models.base import Writer
from auditkit.models.batching import in_batches
from auditkit.models.offload import at_work
from auditkit.runs import jsonl
from auditkit.runs.costs import JUDGED_FILE
from auditkit.runs.progress import Progress
from auditkit.text import quoted

REPLY_TOKENS = 12
ENOUGH = 20  # replies after which a judge that mostly says neither yes nor no is refused


class LLMJudge:
    """Decides pairs of answers by asking a model; every reply is filed as soon as its batch is done.

    It reads the answers as they were given: their normalised texts would lose a "not". Replies are filed beside these
    and found again for whatever has the same normalised texts.
    `asked` counts the pairs put to it by this object, `unclear` its replies on file that were neither yes nor no.

    Args:
        spec: the text that names the model.
        load: a spec and the key it stands under -> the model; called when the first pair is to be asked.
        folder: where replies are filed (judged.jsonl); None: in memory alone.
    """

    def __init__(self, spec: str, load: Callable[[str, str], Writer], folder: Path | None = None):
        self.spec, self.load, self.path = spec, load, folder and folder / JUDGED_FILE
        self.asked, self.unclear = 0, 0
        self._replies: dict[Pair, str] = {}
        for row in jsonl.read(self.path) if self.path else ():
            if specs.same_model(row["judge"], spec):
                self._replies[normal_pair(row["question"], row["a"], row["b"])] = row["reply"]

    def __call__(self, pairs: Sequence[Pair]) -> list[bool]:
        """Whether each pair means the same.

        Raises AuditError when the model's replies are mostly neither yes nor no.
        """
        todo = list({normal_pair(*pair): pair for pair in pairs if normal_pair(*pair) not in self._replies}.values())

        def ask(rows: list[int]) -> None:
            batch = [todo[i] for i in rows]
            try:
                self._keep(batch, self._model.write([None] * len(batch), [prompts[i] for i in rows], REPLY_TOKENS))
            except Unfinished as error:  # a request among others failed; what came back has been paid for
                self._keep(batch, error.answers)
                raise

        if todo:
            prompts = [judge_prompt(*pair) for pair in todo]
            with at_work(self._model), Progress(f"pairs of answers compared by {self._model.name}", len(todo)) as line:
                for rows, _ in in_batches(self._model, prompts, ask):
                    self._refuse_nonsense()
                    line.add(len(rows))
        return [yes_or_no(self._replies[normal_pair(*pair)]) is True for pair in pairs]

    @cached_property
    def _model(self) -> Writer:
        return self.load(self.spec, "same")

    def _keep(self, batch: Sequence[Pair], replies: Sequence[str | None]) -> None:
        """File what was replied, with what is said beside it (WrittenText)."""
        new = [(pair, reply) for pair, reply in zip(batch, replies, strict=True) if reply is not None]
        if self.path:
            judge = {"judge": self.spec, "model": self._model.name}
            rows = (
                judge
                | {"question": q, "a": a, "b": b, "reply": str(reply)}
                | ({"unclear": True} if yes_or_no(reply) is None else {})
                | getattr(reply, "beside", {})
                for (q, a, b), reply in new
            )
            jsonl.append(self.path, rows)
        self._replies |= {normal_pair(*pair): str(reply) for pair, reply in new}
        self.asked += len(new)

    def _refuse_nonsense(self) -> None:
        unclear = [reply for reply in self._replies.values() if yes_or_no(reply) is None]
        self.unclear = len(unclear)
        if len(self._replies) >= ENOUGH and len(unclear) > len(self._replies) / 2:
            raise AuditError(
                f'same: "{self.spec}" cannot judge: of {len(self._replies)} replies {len(unclear)} are neither yes '
                f"nor no, such as {unclear[-1][:60]!r}; name another model, or text or embedding."
            )


def judge_prompt(question: str, a: str, b: str) -> str:
    """What a model is asked; question and answers are `quoted`, so that nothing in them looks like the prompt."""
    return _prompt().format(question=quoted(question), a=quoted(a), b=quoted(b))


def yes_or_no(reply: str) -> bool | None:
    """What a judge's reply says; None if it does not begin with yes or no, or says both.

    >>> [yes_or_no(reply) for reply in ("Yes.", "no, they differ", "The answer is **yes**", "Maybe", "yes and no", "")]
    [True, False, True, None, None, None]
    >>> yes_or_no("I was told to say yes")
    """
    begins = re.match(r"\W*(?:(?:the\s+)?(?:answer|reply)\b(?:\s+is\b)?\W*)?(yes|no)\b", reply.lower())
    words = set(re.findall(r"\b(?:yes|no)\b", reply.lower()))
    return begins[1] == "yes" if begins and len(words) == 1 else None


@cache
def _prompt() -> str:
    return (Path(__file__).parent / "prompts" / "same.txt").read_text(encoding="utf-8").strip()
