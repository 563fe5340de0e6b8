"""Tables as Markdown and on the terminal, SI prefixes, the progress bar."""

import pytest
from rich.console import Console

from minimoe.reporting.progress import progress_bar
from minimoe.reporting.tables import TextTable, print_table, si

TABLE = TextTable("loads", "Loads, *seed by seed*.", ["method", "MaxVio"], [["bias", "0.12"], ["none", ""]])


def test_a_table_in_markdown():
    assert TABLE.markdown() == "| method | MaxVio |\n| --- | --- |\n| bias | 0.12 |\n| none |  |"


def test_a_table_from_rows_of_data():
    columns = {"method": "{method}", "MaxVio": "{violation:.2f}"}
    rows = [{"method": "bias", "violation": 0.119, "unused": 1}]
    assert TextTable.from_rows("loads", "", columns, rows) == TextTable(
        "loads", "", ["method", "MaxVio"], [["bias", "0.12"]]
    )


def test_a_table_on_the_terminal_has_right_aligned_figures():
    console = Console(width=80, record=True)
    print_table(TABLE, console)
    text = console.export_text()
    assert text.startswith("Loads, seed by seed.\n")
    assert any(line.split() == ["│", "bias", "│", "0.12", "│"] for line in text.splitlines())
    assert "│   0.12 │" in text


@pytest.mark.parametrize(
    ("value", "text"), [(999, "999"), (1_234_567, "1.23 M"), (3.5e9, "3.50 G"), (2e13, "20.00 T")]
)
def test_si_prefixes(value, text):
    assert si(value) == text


@pytest.mark.parametrize("unit", ["", "steps"])
def test_the_bar_shows_count_and_description_in_one_line(unit):
    console = Console(width=80, record=True)
    progress = progress_bar(console, unit)
    progress.add_task("a description that is far longer than the terminal is wide", total=9, completed=3)
    console.print(progress.get_renderable())
    text = console.export_text()
    assert len(text.splitlines()) == 1
    assert ("3/9 steps" in text) == bool(unit)
    assert "a description" in text
