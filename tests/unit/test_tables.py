"""Tables and plots as a markdown reader shows them."""

import base64
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from PIL import Image

from kitchen_assets.tables import loss_plot, markdown_table


class Page(HTMLParser):
    """A rendered page: the text of each table cell by row, and every element but the table's own."""

    def __init__(self, markdown: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.elements: list[str] = []
        # As the UI does it: tables, strike-through, raw HTML and all.
        self.feed(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown))

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag not in ("table", "thead", "tbody"):
            self.elements.append(tag)

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1] and data != "\n":
            self.rows[-1][-1] += data


def test_table_text() -> None:
    rows = [{"row": 0, "text": "abc"}, {"row": 12, "share": 0.5, "none": None}]
    assert markdown_table(rows) == (
        "| row | text | share | none |\n|---|---|---|---|\n| 0 | abc |  |  |\n| 12 |  | 0.5 |  |"
    )


def test_no_rows() -> None:
    assert markdown_table([]) == "none"


HOSTILE = [
    "a | b",
    "|",
    "\\|",
    "\\",
    "ends in \\",
    "`code` and ``more``",
    "<script>alert(1)</script>",
    "<img src=https://example.invalid/x.png>",
    "</td></table>",
    "&lt; is not < & &amp;amp; neither",
    "&#x27;",
    "![image](https://example.invalid/x.png)",
    "[link](javascript:alert(1))",
    "<https://example.invalid>",
    "**bold** *it* ~~gone~~",
    "\\*not\\*",
    "$x$ # no heading",
    "---",
    "süß 🍲 \u2028\u00a0.",
    "__init__ and _it_ but held_out/exact_match and a__b",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_cell_shows_its_text_and_nothing_else(text: str) -> None:
    page = Page(markdown_table([{"column": text, "next": "kept"}, {"column": "last", "next": "row"}]))
    assert page.rows == [["column", "next"], [text, "kept"], ["last", "row"]]
    assert page.elements == []


@pytest.mark.parametrize("text", HOSTILE)
def test_so_does_a_column_name(text: str) -> None:
    page = Page(markdown_table([{text: 1, "next": 2}]))
    assert page.rows == [[text, "next"], ["1", "2"]]
    assert page.elements == []


@pytest.mark.parametrize(
    ("text", "shown"), [("a\nb", "a ⏎ b"), ("a\r\nb", "a ⏎ b"), ("a\rb", "a b"), ("a\n\n| b", "a ⏎  ⏎ | b")]
)
def test_a_line_break_does_not_end_the_row(text: str, shown: str) -> None:
    assert Page(markdown_table([{"column": text, "next": "kept"}])).rows == [["column", "next"], [shown, "kept"]]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ([{"role": "user", "content": "ü|"}], '[{"role": "user", "content": "ü|"}]'),
        ({"b": 1, "a": None}, '{"b": 1, "a": null}'),
        (True, "true"),
        (0, "0"),
        (0.25, "0.25"),
        ("", ""),
        (Path("a/b"), '"a/b"'),
    ],
)
def test_values_are_shown_as_json(value: Any, shown: str) -> None:
    assert Page(markdown_table([{"value": value, "next": "kept"}])).rows[1] == [shown, "kept"]


def test_long_cells_are_cut() -> None:
    assert markdown_table([{"text": "x" * 160}]).endswith(f"| {'x' * 160} |")
    assert markdown_table([{"text": "x" * 161}]).endswith(f"| {'x' * 159}… |")
    # Cut before it is escaped: no half of an escape is left.
    assert markdown_table([{"text": "|" * 161}]).endswith("| " + r"\|" * 159 + "… |")


def test_a_column_named_late_comes_last() -> None:
    table = markdown_table([{"b": 1}, {"a": 2, "b": 3}])
    assert table.splitlines()[0] == "| b | a |"


# Plots.


def picture(markdown: str) -> Image.Image:
    match = re.fullmatch(r"!\[loss\]\(data:image/png;base64,([A-Za-z0-9+/=]+)\)", markdown)
    assert match is not None
    data = base64.b64decode(match[1], validate=True)
    assert 1_000 < len(data) < 20_000
    image = Image.open(io.BytesIO(data))
    image.load()
    assert image.format == "PNG"
    assert image.size == (400, 208)
    return image


def colours(image: Image.Image) -> set[tuple[int, ...]]:
    found = image.convert("RGB").getcolors(1 << 20)
    assert found is not None
    return {colour for _, colour in found}


BLUE, ORANGE = (31, 119, 180), (255, 127, 14)


def test_loss_plot() -> None:
    image = picture(loss_plot([(step, 5 / (1 + step)) for step in range(400)]))
    assert BLUE in colours(image)
    assert ORANGE not in colours(image)


def test_marks_are_drawn_over_the_curve() -> None:
    points = [(step, 5 / (1 + step)) for step in range(400)]
    image = picture(loss_plot(points, [(100, 1.0), (200, 0.5), (400, 0.4)], label="held out"))
    assert {BLUE, ORANGE} <= colours(image)


def test_plots_of_other_values_differ() -> None:
    points = [(step, float(step)) for step in range(10)]
    assert loss_plot(points) == loss_plot(points)
    assert loss_plot(points) != loss_plot([(step, -value) for step, value in points])
    assert loss_plot(points, [(5, 1.0)], label="a") != loss_plot(points, [(5, 1.0)], label="b")


@pytest.mark.parametrize("points", [[], [(1, 2.0)], [(1, math.nan), (2, 1.0), (3, math.inf)]])
def test_odd_curves_are_still_a_picture(points: list[tuple[int, float]]) -> None:
    picture(loss_plot(points))
