"""Every answer that a model gave, on disk as soon as its batch is done."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from auditkit.data.source import Picture
from auditkit.errors import Unfinished
from auditkit.models.answer_index import AnswerIndex, Key
from auditkit.models.base import Writer
from auditkit.models.batching import in_batches
from auditkit.models.offload import at_work
from auditkit.runs import jsonl
from auditkit.runs.progress import Progress


class AnswerBook:
    """Every answer a model gave, in a file of one object a line, so that nothing is asked twice, even after a kill.

    An answer is filed under the model's name, the picture's key and the question, as soon as its batch is done.
    They are looked up in an index outside of memory (answer_index.py), so that there may be millions.
    `asked` counts the questions put to models by this object, `known` the answers in the book.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.asked = 0
        self._index = AnswerIndex(self.path)

    @property
    def known(self) -> int:
        return len(self._index)

    def ask(
        self, vlm: Writer, pictures: Sequence[Picture], questions: Sequence[str], max_new_tokens: int = 8
    ) -> list[str]:
        """The model's answers to n questions on n pictures; only what the book does not hold yet is asked."""
        keys = [(vlm.name, picture.key, question) for picture, question in zip(pictures, questions, strict=True)]
        unique = dict(zip(keys, pictures, strict=True))
        # Batches are cut before the known answers are taken out: a run that was killed then forms the same batches as
        # one that was not, and gets the same answers to the last bit.
        todo = list(unique)

        def write(rows: list[int]) -> None:
            missing = self._missing([todo[i] for i in rows])
            if not missing:
                return
            shown = {key[1]: unique[key].image for key in missing}  # each picture's file is read once
            images = [shown[picture] for _, picture, _ in missing]
            try:
                self._keep(missing, vlm.write(images, [question for _, _, question in missing], max_new_tokens))
                line.add(len(missing))
            except Unfinished as error:  # a request among others failed; what came back has been paid for
                self._keep(missing, error.answers)
                raise

        if new := self._missing(todo):
            with at_work(vlm), Progress(f"answers of {vlm.name}", len(new)) as line:
                for _ in in_batches(
                    vlm, [question for _, _, question in todo], write, together=[picture for _, picture, _ in todo]
                ):
                    pass
        return [said for said in self._index.get(keys) if said is not None]  # each has one by now

    def _keep(self, keys: list[Key], answers: Sequence[str | None]) -> None:
        """File what was answered, with what is said beside it (WrittenText)."""
        new = {key: said for key, said in zip(keys, answers, strict=True) if said is not None}
        rows = (
            {"model": m, "picture": p, "question": q, "answer": str(said)} | getattr(said, "beside", {})
            for (m, p, q), said in new.items()
        )
        jsonl.append(self.path, rows)
        self._index.add({key: str(said) for key, said in new.items()})
        self.asked += len(new)

    def _missing(self, keys: list[Key]) -> list[Key]:
        return [key for key, said in zip(keys, self._index.get(keys), strict=True) if said is None]


def answers_by_model(*paths: Path) -> Counter:
    """How many answers of each model, by its name, these books hold; a book given twice counts once."""
    return Counter(row["model"] for path in set(paths) for row in jsonl.each(path))
