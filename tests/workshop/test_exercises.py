"""The exercises: each check says of every common slip what is wrong, and the notebooks run with their solutions."""

import ast
import re
from collections import Counter

import nbformat
import pytest
from exercise_books import NOTEBOOKS, SMALLER, solutions
from scipy.stats import binomtest
from smoke_run import make_project

from auditkit import workshop
from auditkit.consensus.normalise import normalise, same_text
from auditkit.consensus.vote import vote
from auditkit.errors import AuditError
from auditkit.report.notebook import Quote
from auditkit.workshop import game, lessons


def most_common(target, references, form=normalise, least=0.6, ties=False):
    """A vote that can be made wrong in one way at a time."""
    ranked = Counter(form(answer) for answer in references).most_common()
    answer, n = ranked[0]
    tie = len(ranked) > 1 and ranked[1][1] == n and not ties
    consensus = answer if n / len(references) >= least and not tie else None
    return consensus, consensus is not None and form(target) != consensus


def test_a_right_vote_passes_and_each_slip_is_told_by_its_case():
    assert workshop.check_vote(most_common).right
    slips = {
        "“two” and “2” mean the same": lambda t, r: most_common(t, r, form=str),
        "a tie is no consensus": lambda t, r: most_common(t, r, least=0.5, ties=True),
        "two of three are 67 %": lambda t, r: most_common(t, r, least=0.7),
        "two of four are 50 %": lambda t, r: most_common(t, r, least=0.5),
        "you say the opposite": lambda t, r: (most_common(t, r)[0], not most_common(t, r)[1]),
        "two things": lambda t, r: most_common(t, r)[1],
        "nobody departs": lambda t, r: (most_common(t, r)[0], True),
    }
    for words, slip in slips.items():
        said = workshop.check_vote(slip)
        assert not said.right and words in said.text, said.text


def test_a_blank_and_an_error_are_told_in_a_sentence():
    def my_gain(before, after):
        return sum(1 for b in before if ...), 0

    said = workshop.check_gain(my_gain)
    assert not said.right and said.text.startswith(
        "✗ There is a `...` left in `my_gain`: replace each by an expression"
    )
    assert "it needs a `return`" in workshop.check_reward(lambda t, r: None).text
    said = workshop.check_fair(lambda share, rest: 1 / 0)
    assert "ZeroDivisionError: division by zero" in said.text and said.text.startswith("✗")
    assert isinstance(said, Quote) and "<script" not in workshop.check_vote(lambda t, r: "<script>")._repr_html_()


def test_the_reward_and_its_coverage():
    assert workshop.check_reward(lambda t, r: float(vote(t, r).disagrees)).right
    told = workshop.check_reward(lambda t, r: float(normalise(t) != normalise(r[0]))).text
    assert "the question earns 0, yours 1.0" in told
    right = lambda kind, recent, n: min(4, (len(recent) + n) / (n * (recent.count(kind) + 1)))  # noqa: E731
    assert workshop.check_coverage(right).right
    for slip in (lambda k, r, n: right(k, r, n) * 2, lambda k, r, n: (len(r) + n) / (n * (r.count(k) + 1)),
                 lambda k, r, n: (r.count(k) + 1) / (len(r) + n)):  # fmt: skip
        assert "it earns 1 / (kinds × share), and never more than 4" in workshop.check_coverage(slip).text


def test_what_never_looks():
    found = lambda rows, n: Counter(r["question"] for r in rows if r["outcome"] == "finding").most_common(n)  # noqa: E731
    assert workshop.check_blind(lambda rows, n: [question for question, _ in found(rows, n)]).right
    every = lambda rows, n: [q for q, _ in Counter(r["question"] for r in rows).most_common(n)]  # noqa: E731
    assert "was asked most, but found nothing" in workshop.check_blind(every).text
    assert "the questions alone" in workshop.check_blind(found).text
    assert "you give 1 questions" in workshop.check_blind(lambda rows, n: ["is there a red star?"]).text
    assert workshop.check_elsewhere(lambda some: some[1:] + some[:1]).right
    assert "p3 stays where it was" in workshop.check_elsewhere(lambda some: some[::-1]).text
    assert "each is to be there once" in workshop.check_elsewhere(lambda some: some[1:]).text


def test_what_turns_and_what_is_fair():
    def turned(before, after, stays=True, was_right=True, alike=same_text):
        if before.consensus is None or after.consensus is None:
            return False
        kept = not stays or alike(before.consensus, after.consensus)
        return kept and (not was_right or alike(before.target, before.consensus)) and not alike(
            after.target, after.consensus
        )  # fmt: skip

    assert workshop.check_turned(turned).right
    assert "was wrong before" in workshop.check_turned(lambda b, a: turned(b, a, was_right=False)).text
    assert "mean the same" in workshop.check_turned(lambda b, a: turned(b, a, alike=lambda x, y: x == y)).text
    assert "the references turned too" in workshop.check_turned(lambda b, a: b.target != a.target).text
    assert workshop.check_fair(lambda share, rest: 0 < share <= 0.5 and rest >= 0.9).right
    assert "nothing changed" in workshop.check_fair(lambda share, rest: share <= 0.5 and rest >= 0.9).text
    assert "the rest of the picture" in workshop.check_fair(lambda share, rest: 0 < share <= 0.5).text
    assert "just within" in workshop.check_fair(lambda share, rest: 0 < share < 0.5 and rest > 0.9).text


def test_a_command_is_right_where_the_target_alone_turned_and_little_changed():
    class Said:
        def __init__(self, target, consensus):
            self.target, self.consensus = target, consensus

    def rule(before, after):
        stays = None not in (before.consensus, after.consensus) and same_text(before.consensus, after.consensus)
        return stays and same_text(before.target, before.consensus) and not same_text(after.target, after.consensus)

    row = {"command": "make it small", "before": Said("a", "a"), "after": Said("b", "a"), "why": ""}
    assert workshop.check_commands([row], rule).right
    assert "not fair: not targeted" in workshop.check_commands([row | {"why": "not targeted"}], rule).text
    assert "none turned the target alone" in workshop.check_commands([row | {"after": Said("b", "b")}], rule).text
    assert "none turned" in workshop.check_commands([row | {"after": None}], rule).text
    assert "is empty" in workshop.check_commands([], rule).text
    assert "First `my_turned`" in workshop.check_commands([row], lambda b, a: True).text


def test_better_or_luck():
    gain = lambda b, a: (sum(y > x for x, y in zip(b, a, strict=True)), sum(y < x for x, y in zip(b, a, strict=True)))  # noqa: E731
    assert workshop.check_gain(gain).right
    assert "question by question" in workshop.check_gain(lambda b, a: (sum(a) - sum(b), 0)).text
    p = lambda gained, lost: binomtest(gained, gained + lost).pvalue  # noqa: E731
    assert workshop.check_mcnemar(p).right
    one_sided = lambda gained, lost: binomtest(gained, gained + lost, alternative="greater").pvalue  # noqa: E731
    assert "either way" in workshop.check_mcnemar(one_sided).text
    assert "above the upper" in workshop.check_interval(lambda b, a: (0.4, 0.1)).text
    assert "Draw whole questions" in workshop.check_interval(lambda b, a: (-0.9, 0.9)).text
    assert "two ends" in workshop.check_interval(lambda b, a: 0.1).text


# ---- the notebooks --------------------------------------------------------------------------------------------------


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def book(request):
    return nbformat.read(request.param, as_version=4)


def test_there_are_six():
    assert [path.stem[0] for path in NOTEBOOKS] == list("abcdef")


def test_each_is_committed_clean_and_has_what_a_lesson_needs(book):
    letter, first = book.cells[0].id[0], book.cells[0].source
    assert re.match(rf"# {letter} · .+\n\n\*\*.+\?\*\*", first) and "| goal | time | difficulty | blanks |" in first
    (minutes,) = re.findall(r"\| (\d+) minutes \|", first)
    assert 10 <= int(minutes) <= 20
    ids = [cell.id for cell in book.cells]
    assert len(set(ids)) == len(ids) and all(id.startswith(f"{letter}-") for id in ids)
    for cell in book.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None and set(cell.metadata) <= {"tags"}, cell.id
    assert book.cells[-1].id == f"{letter}-next" and book.cells[-2].source.count("<details>") == 3


def test_each_blank_has_hints_and_a_solution_that_fills_it(book):
    code = {cell.id: cell for cell in book.cells if cell.cell_type == "code"}
    blanks = {id for id, cell in code.items() if "blank" in cell.metadata.get("tags", [])}
    assert blanks == set(solutions(book)) and blanks
    for id, solution in solutions(book).items():
        assert any(
            isinstance(node, ast.Constant) and node.value is ... for node in ast.walk(ast.parse(code[id].source))
        )
        assert "..." not in solution, id
        defined = [[node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
                   for text in (code[id].source, solution)]  # fmt: skip
        assert defined[0] == defined[1], id
    for id, cell in code.items():
        if id not in blanks:
            defines = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.FunctionDef)]
            assert not defines, f"{id}: only a blank defines a function"


def run_cells(book, filled: bool) -> tuple[dict[str, object], dict[str, Exception]]:
    """All code cells in order, small: what the last line of each gives, and which failed with what."""
    shown: dict[str, object] = {}
    failed: dict[str, Exception] = {}
    names: dict = {}
    fill = solutions(book) if filled else {}
    for cell in book.cells:
        if cell.cell_type != "code":
            continue
        source = fill.get(cell.id, cell.source)
        for usual, small in SMALLER.items():
            source = source.replace(usual, small)
        *first, last = ast.parse(source).body
        try:
            exec(compile(ast.Module(first, []), cell.id, "exec"), names)
            if isinstance(last, ast.Expr):
                shown[cell.id] = eval(compile(ast.Expression(last.value), cell.id, "eval"), names)
            else:
                exec(compile(ast.Module([last], []), cell.id, "exec"), names)
        except Exception as error:
            failed[cell.id] = error
    return shown, failed


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A project of the test's own, trainings of two steps, and a folder that group red has planted in one."""
    project = make_project(tmp_path / "project")
    monkeypatch.chdir(project)
    for name, value in {"grpo_steps": 2, "grpo_images": 2, "train_images": 4}.items():
        monkeypatch.setitem(lessons.FAST, name, value)
    return project


def test_each_runs_with_its_solutions(book, small):
    if book.cells[0].id == "f-title":
        game.plant_sealed([game.make_gap("colour", "purple", "blue")], small / "outputs/workshop/red", "red", 1)
    shown, failed = run_cells(book, filled=True)
    assert failed == {}
    for cell in book.cells:
        if "check" in cell.metadata.get("tags", []):
            assert shown[cell.id].right, shown[cell.id].text
    if book.cells[0].id == "a-title":
        assert "_repr_png_" in dir(shown["a-use"])


def test_each_says_what_is_missing_where_blanks_are_left(book, small):
    """Run All ends in a sentence, and every check names the function in which a blank is left."""
    shown, failed = run_cells(book, filled=False)
    for cell in book.cells:
        if "check" in cell.metadata.get("tags", []) and cell.id in shown:
            assert not shown[cell.id].right and "left in `my_" in shown[cell.id].text, cell.id
    told = [str(error) for error in failed.values() if isinstance(error, AuditError)]
    assert told and all("fill in the blank above" in one or "The check above is to pass first" in one for one in told)
    later = [error for error in failed.values() if not isinstance(error, AuditError)]
    assert all(isinstance(error, NameError) for error in later), later  # of cells below one that ended
