"""What the notebooks show: cards, tables, progress, widgets."""

import ast
import inspect
import io
import typing
import warnings
from types import SimpleNamespace

import ipywidgets
import nbformat
import numpy as np
import pandas as pd
import pytest
from IPython.display import Code
from PIL import Image

from auditkit import stats
from auditkit.counterfactual.make import load_pipeline
from auditkit.counterfactual.store import with_counterfactuals
from auditkit.data.load import load_images
from auditkit.findings import by_way
from auditkit.models import roles
from auditkit.report import cards, notebook, plots, progress, tables, widgets
from auditkit.report.page import pair
from auditkit.runs import jsonl

RATE = stats.rate(45, 50)
IMAGE = Image.new("RGB", (8, 8))


class Source:
    """Three pictures; the colour of one is known."""

    complete = False

    def picture(self, key):
        return SimpleNamespace(key=key, image=IMAGE)

    def accepted(self, key, question):
        return ("red",) if key == "a" else ()


def probe(key="a", **more):
    return {"key": f"p-{key}", "picture": key, "question": "what colour is it?", "target": "blue", **more}


# ---- cards ----------------------------------------------------------------------------------------------------------


def test_a_probes_card_has_its_picture_and_what_is_known():
    shown = cards.probe_cards([probe("a"), probe("b")], Source())
    assert [card.get("truth") for card in shown] == ["red", None] and shown[0]["image"] is IMAGE
    assert shown[0]["target"] == "blue"


def test_a_person_who_is_to_judge_sees_no_answer_and_no_truth():
    (card,) = cards.asked_cards([probe("a", consensus="red", references={"x": "red"})], Source())
    assert set(card) == {"image", "question"}


def test_the_rows_given_stay_as_they_are():
    row = probe("a")
    cards.probe_cards([row], Source())
    assert "image" not in row and "truth" not in row


def test_pictures_stand_under_their_keys_or_under_a_text():
    pictures = [Source().picture("a")]
    assert cards.picture_cards(pictures)[0]["question"] == "a"
    assert cards.picture_cards(pictures, ["why so?"])[0]["question"] == "why so?"


def test_everybody_but_the_target_is_shown_as_a_reference():
    (example,) = [SimpleNamespace(image=IMAGE, question="how many?", answer="")]
    (card,) = cards.answer_cards([example], {"t": ["two"], "r": ["3"]}, "t")
    assert (card["target"], card["references"]) == ("two", {"r": "3"}) and "truth" not in card
    plots.gallery([card])


def test_the_pictures_on_which_the_target_stands_alone_come_first():
    """Not those on which all are right, nor those on which the others differ."""
    said = [("two", "2", "2"), ("two", "3", "4"), ("two", "3", "3"), ("3", "3", "3")]
    rows = [{"target": t, "references": {"a": a, "b": b}, "n": n} for n, (t, a, b) in enumerate(said)]
    assert [row["n"] for row in cards.alone_first(rows)] == [2, 0, 1, 3]
    assert [cards.stands_alone(row) for row in rows] == [False, False, True, False]


def test_after_the_repair_the_answer_before_stands_beside():
    row = {"key": "p", "picture": "a", "question": "how many?", "consensus": "two", "before": "3", "after": "two"}
    (card,) = cards.repaired_cards([row], Source())
    assert (card["target"], card["references"], card["consensus"]) == ("two", {"before": "3"}, "two")


def test_a_training_set_shows_findings_and_what_else_there_is_each_under_its_name():
    """Originals come first in it, most of them, and none of those has a consensus."""
    kinds = ["original"] * 5 + ["finding"] * 3 + ["agreed"] * 2
    examples = [SimpleNamespace(key=f"e{i}", image=IMAGE, question="colour?", answer=f"n{i}") for i in range(10)]
    scored = [probe("a", consensus="x") | {"key": f"e{i}"} for i in range(5, 10)]
    kind_of = {example.key: kind for example, kind in zip(examples, kinds, strict=True)}
    shown = cards.example_cards(examples + examples, kind_of, scored, Source())
    assert [card["note"] for card in shown] == ["a finding"] * 2 + ["all agreed", "an original, with its label"]
    assert [card.get("consensus") for card in shown] == ["n5", "n6", "n8", None]
    assert shown[0]["target"] == "blue" and shown[0]["truth"] == "red" and shown[3]["truth"] == "n0"
    said = [text.get_text() for text in plots.gallery(shown).texts]
    assert said.count("a finding") == 2 and "✗ target: blue" in said


def test_a_card_is_marked_by_the_truth_where_it_is_known():
    """References can be wrong together: then the target is right, and so it says."""
    row = {"image": IMAGE, "question": "q", "target": "square", "consensus": "circle"}

    def said(row) -> list[str]:
        return [text.get_text() for text in plots.gallery([row]).texts]

    assert "✗ target: square" in said(row) and "✓ ✗ by the consensus" in said(row)
    assert "✓ target: square" in said(row | {"truth": "square"}) and "✓ ✗ by the truth" in said(
        row | {"truth": "square"}
    )
    assert "✗ target: square" in said(row | {"truth": "circle"})
    assert "✓ target: square" in said(row | {"truth": "circle", "accepted": ["circle", "square"]})
    assert "✗ target: square" in said(row | {"truth": "circle", "consensus": "square"}), "all of them wrong"
    both = [text.get_text() for text in plots.gallery([row, row | {"truth": "square"}]).texts]
    assert "✓ ✗ by the truth where it is known, else by the consensus" in both
    none = said(row | {"senseless": True})
    assert "target: square" in none and "truth: there is no answer" in none, "nobody is right"


def test_pictures_before_and_after_are_marked_by_the_truth_of_each():
    row = {"before_image": IMAGE, "image": IMAGE, "made": "paint it", "question": "q", "target": "square"}
    row |= {"consensus": "circle", "target_before": "star", "consensus_before": "star"}
    texts = [text.get_text() for text in plots.pairs([row]).texts]
    assert "✗ target: square" in texts and "✓ ✗ by the consensus" in texts
    texts = [text.get_text() for text in plots.pairs([row | {"truth": "square", "truth_before": "cross"}]).texts]
    assert "✓ target: square" in texts and "✗ target: star" in texts and "✓ ✗ by the truth" in texts


def test_made_pictures_are_marked_by_what_they_show(tmp_path):
    """An edit is a finding by the consensus; the board that came out says that the target is right."""
    boards = load_images("miniature")
    key = boards.pictures("baseline", 1, 0)[0].key
    truth = boards.truth(key, "how many objects are there?")
    row = {"base": key, "picture": key, "question": "how many objects are there?", "target": truth, "consensus": "99"}
    source = with_counterfactuals(boards)
    source.made = {key: SimpleNamespace(box=None)}
    (shown,) = by_way.before_and_after([row | {"made": "a", "before": {"target": "98"}}], source)
    assert shown["truth"] == shown["truth_before"] == truth
    texts = [text.get_text() for text in plots.pairs([shown]).texts]
    assert f"✓ target: {truth}" in texts and "✗ target: 98" in texts
    (kept,) = by_way.describe_edits([row | {"before": {"target": "98"}}], source)
    assert kept["truth"] == truth
    assert pair(kept | {"made": "a"}, [tmp_path])["right"] and not pair(row | {"made": "a"}, [tmp_path])["right"]


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_a_rate_that_was_not_measured_is_left_empty():
    rows = {"edit": {"probes": 3, "precision": RATE}, "question": {"probes": 4}}
    table = tables.measured_table(rows, counts=("probes",), rates=("precision",)).data
    assert table.loc["edit", "precision"] == "90.0% of 50" and table["precision"].isna()["question"]
    assert list(table.columns) == ["probes", "precision"] and list(table.index) == ["edit", "question"]


def test_without_names_all_that_is_there_is_a_rate():
    assert tables.measured_table({"outside": {"before": RATE}}).data.loc["outside", "before"] == "90.0% of 50"
    assert tables.measured_table({}).data.empty


def test_outcomes_are_counted_most_frequent_first():
    table = tables.outcomes_table([{"outcome": "agrees"}] * 3 + [{"outcome": "finding"}]).data
    assert list(table.index) == ["agrees", "finding"] and list(table["share"]) == ["75.0%", "25.0%"]


def test_tables_of_a_run_without_anything_are_empty():
    assert tables.planted_table({}).data.empty and tables.false_alarms_table({}).data.empty
    assert tables.types_table([]).data.empty and tables.false_share_table({}).data.empty
    assert tables.pictures_table([]).data.empty and tables.skills_table([]).data.empty
    assert tables.accuracy_table({}, []).data.empty and len(tables.types_against_gaps([], {}).data) == 0
    for empty in (tables.types_table([]), tables.planted_table({}), tables.false_share_table({}),
                  tables.skills_table([]), tables.pictures_table([]), tables.accuracy_table({}, [])):  # fmt: skip
        assert "<table" in empty._repr_html_() and repr(empty)


def test_gaps_are_ticked_and_sorted_by_their_findings():
    gaps = [{"name": n, "skill": "s", "condition": "", "says": "", "probes": 9, "findings": f, "found": f > 2}
            for n, f in (("few", 1), ("many", 7))]  # fmt: skip
    table = tables.planted_table({"gaps": gaps})
    assert list(table.data["name"]) == ["many", "few"] and "✗ missed" in table._repr_html_()


def test_the_ends_of_a_training_are_means_over_a_tenth():
    history = [{"step": i + 1, "reward/disagreement": i / 100, "entropy": 1.0} for i in range(100)]
    ends = tables.ends_of_training(history).data
    assert ends.loc["reward/disagreement", "last tenth"] == pytest.approx(0.945)
    assert ends.loc["reward/disagreement", "first tenth"] == pytest.approx(0.05)
    assert np.isnan(ends.loc["kinds", "last tenth"])


def test_a_skill_shows_what_chance_has_to_do_with_it():
    row = {"skill": "counting", "before": RATE, "after": RATE, "change": {"value": 0.041}, "gained": 3, "lost": 1}
    shown = tables.skills_table([row | {"p": 0.5, "p_holm": 1.0}]).data.iloc[0]
    assert (shown["before"], shown["change"], shown["p"]) == ("90.0%", "+4.1", "1") and "peer" not in shown


def test_a_p_is_never_nought():
    row = {"skill": "mean", "before": RATE, "after": RATE, "change": {"value": 0.1}, "gained": 990, "lost": 0}
    shown = tables.skills_table([row | {"p": 1.6e-295}, row | {"p": 0.1, "p_holm": 0.0}]).data
    assert list(shown["p"]) == ["< 0.001", "< 0.001"]


def test_an_estimate_says_who_was_asked():
    one = RATE | {"contested": 3, "knows": RATE}
    table = tables.false_share_table({"leave_one_out": one, "held_out": one}).data
    assert list(table["asked"]) == ["each reference, about the consensus of the others",
                                    "the larger peer, which did not vote"]  # fmt: skip


def test_checks_are_ticked():
    checks = [{"key": "disk", "found": "0 GB free", "ok": False, "advice": "make room"}]
    assert tables.checks_table(checks).data.loc["disk", "ok"] == "✗"


HOSTILE = '<img src=x onerror="window.__ran=1"> $\\href{javascript:alert(1)}{x}$ [a](javascript:alert(1)) \x1b]0;t\x07'


def test_whatever_others_wrote_is_text_in_a_table():
    """In a cell, in the name of a row, of a column and of the columns; with and without formats."""
    data = pd.DataFrame({HOSTILE: [HOSTILE, 0.5]}, index=pd.Index([HOSTILE, "b"], name=HOSTILE))
    data.columns.name = HOSTILE
    for shown in (notebook.escaped_table(data), notebook.escaped_table(data, {HOSTILE: str}), notebook.quote(HOSTILE)):
        html, plain = shown._repr_html_(), repr(shown)
        assert "<img" not in html and "&lt;img src=x onerror=&quot;" in html
        assert "\x1b" not in html + plain and "\x07" not in html + plain and r"\x1b]0;t" in plain
        assert html.startswith(('<div class="tex2jax_ignore mathjax_ignore">', '<blockquote class="tex2jax_ignore'))
        assert not set(dir(shown)) & {"_repr_markdown_", "_repr_latex_", "_repr_javascript_", "_repr_mimebundle_"}
    assert notebook.escaped_table(data)._repr_html_().count("&lt;img") == 5


OTHER_WAYS = {
    "Markdown", "HTML", "Javascript", "SVG", "Latex", "Math", "IFrame", "FileLink", "FileLinks", "DisplayHandle",
    "display_html", "display_markdown", "display_javascript", "display_svg", "display_latex", "publish_display_data",
    "style", "to_html", "to_markdown", "to_latex", "HTMLMath", "Styler", "innerHTML", "insertAdjacentHTML",
}  # fmt: skip


def names_in(source: str) -> set[str]:
    nodes = list(ast.walk(ast.parse(source)))
    found = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    found |= {node.name.split(".")[-1] for node in nodes if isinstance(node, ast.alias)}
    found |= {node.id for node in nodes if isinstance(node, ast.Name)}
    return found if "pandas" in source else found - {"style"}  # boards have one too


def test_there_is_no_other_way_into_a_notebook(repository):
    """Text and tables of others go through notebook.quote and notebook.escaped_table; only their module makes HTML."""
    door = repository / "auditkit" / "report" / "notebook.py"
    for file in (repository / "auditkit").rglob("*.py"):
        source = file.read_text(encoding="utf-8")
        assert not (file != door and names_in(source) & OTHER_WAYS), f"{file.name}: {names_in(source) & OTHER_WAYS}"
        makes = {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}
        makes = {name for name in makes if name.startswith("_repr_") or name == "_ipython_display_"}
        assert makes <= ({"_repr_html_"} if file == door else {"_repr_png_"}), f"{file.name} shows {makes}"
    for file in (repository / "notebooks").rglob("*.ipynb"):
        for cell in nbformat.read(file, as_version=4).cells:
            if cell.cell_type == "code":
                assert not names_in(cell.source) & (OTHER_WAYS | {"pandas", "pd"}), cell.id
    for file in (repository / "auditkit").rglob("*.js"):
        assert not any(
            way in file.read_text() for way in ("innerHTML", "outerHTML", "insertAdjacent", "eval(", "write(")
        )


def test_all_tables_are_tables_of_that_way():
    for name, function in vars(tables).items():
        if inspect.isfunction(function) and function.__module__ == tables.__name__ and not name.startswith("_"):
            assert typing.get_type_hints(function)["return"] is notebook.Table, name


def test_source_keeps_its_lines():
    html = notebook.source_of(cards.probe_cards)._repr_html_()
    assert "white-space:pre;" in html and "monospace" in html and "<style" not in html


def test_a_cell_is_written_for_a_reader():
    data = pd.DataFrame({"n": [1000.0, None], "x": [0.18213, 12345.678], "of": [{"a": 1}, RATE], "ok": [True, False]})
    html = notebook.escaped_table(data, index=False)._repr_html_()
    for text in ("1,000<", "0.182<", "12,345.7<", "a 1<", "90.0% of 50<", "yes<", "no<"):
        assert f">{text}" in html, text
    assert "nan" not in html.lower() and "…" not in html
    long = notebook.escaped_table(pd.DataFrame({"text": ["word " * 200] * 70}))
    assert "word " * 200 in long._repr_html_() and "and 10 more rows" in long._repr_html_()


def test_signs_of_mathematics_are_drawn_as_they_are():
    """However the text is wrapped, no half of an escape is left over, at which matplotlib would fail."""
    for text in (
        "$" * 200,
        r"\$" * 90,
        r"$\href{a}{b}$ $\frac{$",
        "a" * 33 + "$x$",
        "\ud800 \u202e \U0001f600 \x1b[31m",
    ):
        row = {"image": IMAGE, "question": text, "target": text, "consensus": "b", "references": {text: text}}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert plots.gallery([row])._repr_png_() and plots.types_bar([{"name": text, "rate": RATE, "size": 1}])
            plots.types_bar([{"name": text, "rate": RATE, "size": 1}])._repr_png_()
            plots.curve({text: [(1, {"mean": 0.5})]}, text, text)._repr_png_()


# ---- progress, source, widgets --------------------------------------------------------------------------------------


def test_the_auditors_progress_goes_on_from_what_is_on_file(tmp_path, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(progress, "display", lambda figure, display_id: SimpleNamespace(update=drawn.append))
    jsonl.append(tmp_path / "history.jsonl", [{"step": n, "reward/disagreement": 0.25} for n in range(1, 9)])
    monkeypatch.setattr(progress, "last_checkpoint", lambda folder: str(folder / "checkpoint-4"))
    now = 0.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    watch = progress.AuditorProgress(40, tmp_path / "history.jsonl")
    assert [row["step"] for row in watch.history] == [1, 2, 3, 4], "later ones are made again"
    watch({"step": 5, "reward/disagreement": 0.5})
    assert not drawn, "to draw takes a fifth of a second"
    now = progress.EVERY
    watch({"step": 6, "reward/disagreement": 0.5, "distinct": 0.5, "kinds": 3})
    assert [row["step"] for row in watch.history] == [1, 2, 3, 4, 5, 6] and len(drawn) == 1
    watch({"step": 40, "reward/disagreement": 0.5})
    assert len(drawn) == 2, "and at the end"
    assert "nan" not in capsys.readouterr().out


def test_the_figure_of_a_training_keeps_its_axes_and_fits_a_small_screen():
    """1366 x 768 leaves a JupyterLab about 950 x 560 pixels for an output."""
    rows = [{"step": n, "reward/disagreement": 0.1 * n, "kinds": n, "group_spread": 0.3} for n in range(1, 7)]
    seen = set()
    for n in range(7):
        figure = plots.training_curve(rows[:n], steps=90)
        width, height = Image.open(io.BytesIO(figure._repr_png_())).size
        assert width <= 950 and height <= 560
        seen.add((len(figure.axes), *(axis.get_xlim() + axis.get_ylim() for axis in figure.axes)))
    assert len(seen) == 1 and next(iter(seen))[1][:2] == (1, 90)
    lines = plots.training_curve([{**row, "step": 7 - row["step"]} for row in rows], steps=90).axes[0].lines
    assert len(lines[0].get_xdata()) == 6


def test_the_source_that_is_shown_is_the_library_s_own():
    shown = notebook.source_of(cards.probe_cards)
    assert isinstance(shown, Code) and shown.data.startswith("def probe_cards(")


def test_a_loss_is_drawn_with_its_mean():
    figure = plots.loss_curve([{"step": i, "loss": 1 / i} for i in range(1, 31)])
    assert len(figure.axes[0].lines) == 2 and figure._repr_png_()
    assert plots.loss_curve([])._repr_png_()


def test_a_type_that_is_chosen_shows_its_examples():
    types = [SimpleNamespace(name=n, size=1, examples=[probe(n)]) for n in "ab"]
    widget = widgets.TypesWidget(types, Source())
    menu, view = widget.children
    before = view.value
    menu.value = 1
    assert view.value != before and menu.options[0] == ("a (1)", 0)
    assert widgets.TypesWidget([], Source()).children == ()


def test_a_command_of_one_s_own_is_carried_out_at_once_and_at_each_press(monkeypatch):
    asked = []

    def attempt_edit(pipeline, image, command, seed, **how):
        asked.append((command, seed, how))
        return (None, "black") if len(asked) > 1 else ({"before_image": image, "image": image, "made": command}, "1 %")

    monkeypatch.setattr(widgets, "attempt_edit", attempt_edit)
    pictures = load_images("miniature").pictures("test", 2, 0)
    pipeline = SimpleNamespace(call={"num_inference_steps": 4})
    widget = widgets.EditWidget(pipeline, pictures, "add a dog", 7, edit_region=0.5, edit_rest=0.9)
    button = next(child for child in widget.children if isinstance(child, ipywidgets.Button))
    assert widget.children[-1].value and widget.children[-2].value == "1 %"
    button.click()
    assert not widget.children[-1].value and widget.children[-2].value == "black"
    bounds = {"edit_region": 0.5, "edit_rest": 0.9, "num_inference_steps": 4, "guidance_scale": 2.5}
    assert asked == [("add a dog", 7, bounds)] * 2


@pytest.fixture(scope="module")
def editor():
    return load_pipeline("miniature:editor", "cpu")


def edit_widget(editor, command="remove what is at a1", **more) -> tuple:
    boards = load_images("miniature")
    pictures = boards.pictures("baseline", 3, 0)
    widget = widgets.EditWidget(editor, pictures, command, 0, 0.5, 0.9, question=boards.question, **more)
    *_, said, view = widget.children
    which, written, question = widget.children[:3]
    return boards, pictures, widget, which, written, question, said, view


def test_moving_to_another_picture_shows_that_picture(editor):
    boards, pictures, _, which, _, question, said, view = edit_widget(editor)
    before = view.value
    which.value = 2
    assert view.value == plots.gallery(cards.picture_cards([pictures[2]]))._repr_png_() != before
    assert question.value == boards.question(pictures[2].key) and said.value == widgets.PRESS


def test_enter_makes_the_edit_and_puts_it_to_target_and_references(editor):
    asked = []

    def ask(images, question):
        asked.append((images, question))
        return [{"target": "red", "references": {"a": "red", "b": "red"}},
                {"target": "blue", "references": {"a": "red", "b": "red"}}]  # fmt: skip

    _, pictures, _, _, written, question, said, view = edit_widget(editor, ask=ask)
    assert not asked, "nobody is asked, and no model loaded, before somebody wants it"
    before = view.value
    written._handle_custom_msg({"event": "submit"}, [])
    ((images, put),) = asked
    assert put == question.value and images[0] is pictures[0].image and images[1].size == images[0].size
    assert "The target turned, the references did not" in said.value and view.value != before
    question._handle_custom_msg({"event": "submit"}, [])
    assert len(asked) == 2


@pytest.mark.parametrize("command", ["", "   "])
def test_an_empty_command_is_no_edit(editor, command, monkeypatch):
    *_, written, _, said, view = edit_widget(editor)
    monkeypatch.setattr(widgets, "attempt_edit", lambda *_, **__: pytest.fail("there is nothing to edit"))
    written.value = command
    written._handle_custom_msg({"event": "submit"}, [])
    assert said.value == widgets.NO_COMMAND and view.value


def test_words_that_the_editor_does_not_know_are_named(editor):
    *_, written, _, said, _ = edit_widget(editor)
    assert "does not know" not in said.value and "look whether it is what you asked for" in said.value
    written.value = "frobnicate the quux at a1"
    written._handle_custom_msg({"event": "submit"}, [])
    assert "'frobnicate', 'quux': the editor does not know that" in said.value


def test_target_and_references_are_loaded_when_they_are_first_asked_and_once():
    loaded = []

    def loader(name):
        def load():
            loaded.append(name)
            return SimpleNamespace(name=name, batch_size=8, write=lambda images, *_: [name] * len(images))

        return load

    ask = roles.everyone([loader("t"), loader("r")], 8)
    assert not loaded
    assert ask([IMAGE, Image.new("RGB", (4, 4))], "colour?") == [{"target": "t", "references": {"r": "r"}}] * 2
    ask([IMAGE], "shape?")
    assert loaded == ["t", "r"]


def test_a_types_bar_is_the_rate_where_the_references_gave_one_of_its_answers():
    rate, when = ({"value": value, "low": 0.1, "high": 0.9, "n": 9} for value in (0.241, 0.8))
    drawn = plots.types_bar([{"name": "says E for F", "size": 9, "rate": rate, "rate_when": when}])
    said = " ".join(text.get_text() for axis in drawn.axes for text in axis.texts).replace("\N{NO-BREAK SPACE}", " ")
    assert "80.0 %" in said and "24.1" not in said
