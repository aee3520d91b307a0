"""Tables and plots for metadata."""

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_CELL = 160

# Rows are other people's text: none of it may end the cell, mark up the page, or load an image from elsewhere.
_ESCAPED = str.maketrans(
    {
        "\\": "\\\\",
        "|": "\\|",
        "`": "\\`",
        "*": "\\*",
        "~": "\\~",
        "&": "&amp;",
        "<": "&lt;",
        ">": "&gt;",
        "\n": " ⏎ ",
        "\r": " ",
    }
)
_UNDERSCORE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
"""One that isn't inside a word, as `held_out` has it, where it is no markup."""


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a markdown table; long cells are cut, and what could break the table or the page is escaped."""
    if not rows:
        return "none"
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = ["| " + " | ".join(map(_cell, columns)) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text if len(text) <= _CELL else f"{text[: _CELL - 1]}…"
    return _UNDERSCORE.sub(r"\\_", text.replace("\r\n", "\n").translate(_ESCAPED)).replace("](", "]\\(")


def loss_plot(
    points: Sequence[tuple[int, float]], marks: Sequence[tuple[int, float]] = (), *, label: str = ""
) -> str:
    """A loss curve as markdown with an embedded PNG of about 10 kB.

    Args:
        points: Step and training loss.
        marks: Step and held-out loss.
        label: Name of what is marked.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 2.6), dpi=80)
    axes = figure.add_axes((0.17, 0.19, 0.81, 0.77))
    axes.plot([step for step, _ in points], [loss for _, loss in points], linewidth=1, label="training")
    if marks:
        axes.plot([step for step, _ in marks], [loss for _, loss in marks], "o-", markersize=4, label=label)
        axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return f"![loss](data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()})"
