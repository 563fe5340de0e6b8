"""The palette and what figures share."""

import re
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

import minimoe
from minimoe.reporting.figures import draw_dots, new_figure

PACKAGE = Path(minimoe.__file__).parent


def test_a_figure_has_a_dot_per_seed_and_a_line_at_the_mean():
    axes = Figure().subplots()
    values = {"one": [1.0, 2.0, 6.0], "two": [4.0, 5.0, 9.0]}
    draw_dots(axes, values)
    assert [line.get_ydata().tolist() for line in axes.lines] == list(values.values())
    assert [bar.get_segments()[0][:, 1].tolist() for bar in axes.collections] == [[3.0, 3.0], [6.0, 6.0]]
    assert [label.get_text() for label in axes.get_xticklabels()] == list(values)


def test_a_figure_is_saved_and_leaves_matplotlibs_settings_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    with new_figure(tmp_path / "figure.png", 4, 3) as figure:
        figure.subplots().plot([1, 2])
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before


def test_colors_have_their_names_in_one_place():
    sources = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "benchmarks").glob("*.py")]
    hex_color = re.compile(r"[\"']#[0-9a-fA-F]{3,8}[\"']")
    assert [path.name for path in sources if hex_color.search(path.read_text())] == ["figures.py"]
