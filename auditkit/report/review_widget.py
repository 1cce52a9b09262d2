"""The widget in notebook 06 at which a person reviews findings, card by card; findings/review.py keeps what they say.

    ReviewWidget(scored, source, run.folder, p.seed)   # as the last line of a cell

An anywidget: its page is review_widget.js, which shows one card, takes buttons and keys, and sends what was pressed.
Everything is decided here. A decision is on disk before the next card is shown, so a review can be left at any time;
the widget opens again at the first card that nobody has judged.

A person decides blind: the card has the different answers that were given, in an order that tells nothing, and who gave
which is shown once it is decided. Whoever picks the target's answer rejects the finding, the consensus accepts it, any
other relabels it.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import anywidget
import traitlets

from auditkit.consensus.normalise import same_text
from auditkit.errors import AuditError
from auditkit.findings import review
from auditkit.report.page import encoded
from auditkit.report.widgets import keep_open, lasting_id
from auditkit.runs import jsonl

HERE = Path(__file__).parent


class ReviewWidget(anywidget.AnyWidget):
    """Shows the records of review.queue one by one and files what is decided about them.

    Args:
        scored: the records of the audit (score_probes).
        source: images of the run, made ones among them (with_counterfactuals).
        folder: of the findings, where reviews.jsonl is.
        seed: of the order.
        blind: False shows who said what at once.
    """

    _esm = HERE / "review_widget.js"
    _css = HERE / "review_widget.css"
    card = traitlets.Dict().tag(sync=True)  # what is shown: text and pictures, nothing of gate or truth

    def __init__(self, scored: Sequence[dict], source, folder: Path, seed: int, blind: bool = True):
        super().__init__(model_id=lasting_id("ReviewWidget", Path(folder).resolve(), seed))
        keep_open(self)
        self._source, self._file, self._seed, self._blind = source, Path(folder) / review.FILE, seed, blind
        self._queue = review.queue(scored, seed)
        self._decided = review.decisions(folder, scored)
        self._done: list[tuple[int, dict | None]] = []  # place, and what had been decided there before
        undecided = (place for place, row in enumerate(self._queue) if row["key"] not in self._decided)
        self.at = next(undecided, 0)
        self._show()
        self.on_msg(self._heard)

    def decide(self, what: str, answer: str = "", note: str = "") -> None:
        """File a decision about the card that is shown and take the next. Raises AuditError as review.decision does."""
        row = self._queue[self.at]
        self._done.append((self.at, self._decided.get(row["key"])))
        try:
            self._filed(review.decision(row, what, answer, note))
        except (AuditError, OSError):
            self._done.pop()
            raise
        self.move(0 if self._blind else 1)  # who said what is shown now

    def answer(self, text: str, note: str = "") -> None:
        """Decide that this is the right answer, whoever gave it. Raises AuditError where it is empty."""
        row = self._queue[self.at]
        if same_text(row["target"], text):
            self.decide("reject", note=note)
        elif row["consensus"] is not None and same_text(row["consensus"], text):
            self.decide("accept", note=note)
        else:
            self.decide("relabel", text, note)

    def options(self) -> list[str]:
        """The different answers to the question of the card that is shown, in an order that tells nothing."""
        row, different = self._queue[self.at], []
        for said in (row["target"], row["consensus"] or "", *row["references"].values()):
            if said and not any(same_text(said, other) for other in different):
                different.append(said)
        different.sort()
        random.Random(f"{self._seed}/{row['key']}").shuffle(different)
        return different

    def undo(self) -> None:
        """Take back the last decision made here, and show its card again."""
        if self._done:
            self.at, before = self._done.pop()
            row = self._queue[self.at]
            again = [before.get(name, "") for name in ("decision", "answer", "note")] if before else ["undo"]
            self._filed(review.decision(row, *again))
        self._show()

    def move(self, step: int) -> None:
        """Show the card so many places on."""
        self.at = min(max(self.at + step, 0), max(len(self._queue) - 1, 0))
        self._show()

    def _filed(self, said: dict) -> None:
        jsonl.append(self._file, [said])
        self._decided[said["key"]] = said
        if said["decision"] == "undo":
            del self._decided[said["key"]]

    def _heard(self, _, said: dict, __) -> None:
        """What the page sent; a decision about a card no longer shown, as by two quick keys, is none."""
        try:
            if said["do"] == "move":
                self.move(said["step"])
            elif said["do"] == "undo":
                self.undo()
            elif said["at"] != self.at or not self._queue:
                return
            elif said["do"] == "choose":
                self.answer(self.options()[said["option"]], said["note"])
            elif said["do"] == "relabel" and self._blind:
                self.answer(said["answer"], said["note"])
            else:
                self.decide(said["do"], said["answer"], said["note"])
        except (AuditError, OSError) as error:
            self._show(str(error))

    def _show(self, message: str = "") -> None:
        if not self._queue:
            self.card = {"of": 0, "message": "Nothing was found, so there is nothing to review."}
            return
        row = self._queue[self.at]
        shown = {name: row.get(name) for name in ("question", "made")}
        if self._blind:
            shown["options"] = self.options()
        if not self._blind or row["key"] in self._decided:
            shown |= {name: row.get(name) for name in ("target", "references", "consensus")}
        pictures = {"picture": encoded(self._source.picture(row["picture"]).image)}
        if row.get("base") and row["base"] != row["picture"]:
            pictures["before"] = encoded(self._source.picture(row["base"]).image)
        said = self._decided.get(row["key"], {})
        said = {name: said.get(name, "") for name in ("decision", "answer", "note")}
        where = {"at": self.at, "of": len(self._queue), "decided": len(self._decided), "undo": bool(self._done)}
        # a number that changes, so that the page hears of a card that is the same as before
        self.card = {**shown, **pictures, **where, "said": said, "message": message, "n": self.card.get("n", 0) + 1}
