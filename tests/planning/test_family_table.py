"""The table of families in docs/models.md says what `auditkit check` finds."""

import importlib.util

import family_table
import pytest
import tiny

AS_MOST = ["yes"] * 5


@pytest.fixture(scope="module")
def shown() -> dict[str, list[str]]:
    """The page's rows: a family's name -> its other cells."""
    page = family_table.PAGE.read_text(encoding="utf-8")
    lines = page.partition(family_table.BEGIN)[2].partition(family_table.END)[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return {cells[0].split("`")[1]: cells[1:] for cells in rows}


def test_every_family_that_is_tested_has_its_row_and_twenty_conform(shown):
    assert [*shown] == [*family_table.PUBLISHED] and shown.keys() == {*tiny.FAMILIES, *tiny.OTHERS, *tiny.REFUSED}
    whole = {name for name, cells in shown.items() if all(cell.startswith("yes") for cell in cells[:5])}
    assert whole == tiny.FAMILIES.keys() and len(whole) >= 20
    assert all(float(shown[name][5]) <= 1e-4 for name in whole)
    assert not any("yes" in cell for name in tiny.REFUSED for cell in shown[name])


@pytest.mark.parametrize("name", ["llava", "mllama", "t5gemma2", "pixtral"])
def test_a_row_is_what_check_finds(name, shown):
    if name == "pixtral" and importlib.util.find_spec("torchvision") is not None:
        pytest.skip("torchvision is here")
    cells, why = family_table.row(name)
    assert cells[:5] == shown[name][:5] and bool(cells[5]) == bool(shown[name][5])
    page = family_table.PAGE.read_text(encoding="utf-8")
    assert (f"- `{name}`: {why}\n" in page) if why else (cells[:5] == AS_MOST and f"- `{name}`:" not in page)
