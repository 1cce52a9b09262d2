"""Where a model runs, in which number format, and with which memory."""

import platform
import subprocess
import sys

import pytest

ANSWER = """
import resource, sys
from auditkit.miniature.boards import Boards
from auditkit.models import transformers
from auditkit.models.base import answer_questions
from auditkit.models.load import load_model
if sys.argv[1] == "leave":
    transformers.keep_freed_memory = lambda: None
boards = Boards()
pictures = boards.pictures("train", 128, 0)
questions, images = [boards.question(one.key) for one in pictures], [one.image for one in pictures]
model = load_model("miniature:target")
answer_questions(model, images, questions)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    said = answer_questions(model, images, questions)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, *said, sep="|")
"""


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="NOT tried: the C library is not GNU's")
def test_memory_that_is_freed_is_kept_and_its_pages_are_not_cleared_anew():
    faults, answers = {}, {}
    for how in ("keep", "leave"):
        done = subprocess.run([sys.executable, "-c", ANSWER, how], capture_output=True, text=True, check=True)
        first, *answers[how] = done.stdout.strip().split("|")
        faults[how] = int(first)
    assert answers["keep"] == answers["leave"] and len(answers["keep"]) == 128
    assert 3 * faults["keep"] < faults["leave"], faults
