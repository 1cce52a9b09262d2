"""Questions read as frames that words fill, by nothing but the questions at hand: no grammar, and any language.

A frame is a question with one word taken out; the words seen there in other questions are its fillers. Words that fill
many frames together are of one kind, as colours or places are, whatever they mean. Two things follow, both without a
model: a question's *neighbours*, one of its words exchanged for another of its kind, and *probing questions* about what
it speaks of, which are the frames most often filled by its words. Of "what colour is the object at c3?" these may be
"what shape is the object at c3?" and "what is written at c3?". Where no words are exchanged there are neither.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

FILLERS = 4  # different words that make a place in a question one that words fill
PER_WORD = 6  # probing questions about each word that fills a frame
WORDS = 2  # of a question that are probed, those of the largest kinds
COMMON = 2  # questions that are put to every picture: those most often asked, where they are
OFTEN = 0.01  # of all questions, at least


class Frames:
    """The frames of given questions, and which words fill them."""

    def __init__(self, questions: Sequence[str]):
        times = Counter(questions)
        fillers: dict[tuple[str, str], set[str]] = defaultdict(set)
        asked: Counter[tuple[str, str]] = Counter()
        for question, n in times.items():
            for word, frame in _frames_of(question):
                fillers[frame].add(word)
                asked[frame] += n
        self.fillers = {frame: words for frame, words in fillers.items() if len(words) >= FILLERS}
        filled: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for frame, words in self.fillers.items():
            for word in words:
                filled[word].append(frame)
        self.of_word = {
            word: sorted(frames, key=lambda frame: (-asked[frame], frame))[:PER_WORD] for word, frames in filled.items()
        }  # word -> the frames that are most often asked, of those it fills
        often = [question for question, n in times.items() if n >= max(2, OFTEN * len(questions))]
        self.common = sorted(often, key=lambda question: (-times[question], question))[:COMMON]

    def probing(self, question: str) -> list[tuple[str, str]]:
        """Questions about the same words or the whole picture, as (what is asked of which word, the question).

        >>> frames = Frames([f"{what} is at {place}?" for what in ("who", "what") for place in "abcd"])
        >>> frames.probing("who is at c?")
        [('1. what is at *?', 'what is at c?')]
        """
        words = [word for word in dict.fromkeys(re.findall(r"\w+", question)) if word in self.of_word]
        largest = sorted(words, key=lambda word: -max(len(self.fillers[frame]) for frame in self.of_word[word]))[:WORDS]
        found = [(common, common) for common in self.common if common != question]
        for place, word in enumerate((word for word in words if word in largest), 1):
            for before, after in self.of_word[word]:
                if (other := f"{before}{word}{after}") != question:
                    found.append((f"{place}. {before}*{after}", other))
        return found

    def neighbours(self, question: str) -> list[str]:
        """The question with one word exchanged for another that was seen in its place, or in places like it."""
        found: dict[str, None] = {}
        for word, (before, after) in _frames_of(question):
            own = self.fillers.get((before, after)) or next(
                (self.fillers[frame] for frame in self.of_word.get(word, ())), set()
            )
            found |= dict.fromkeys(f"{before}{other}{after}" for other in sorted(own - {word}))
        return list(found)


def _frames_of(question: str) -> list[tuple[str, tuple[str, str]]]:
    """Each word of a question, and what stands before and after it."""
    return [(m[0], (question[: m.start()], question[m.end() :])) for m in re.finditer(r"\w+", question)]
