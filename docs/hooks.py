"""What mkdocs is to do beyond mkdocs.yml, so that one text is right here and on a forge.

Every decision is in the navigation; marks of code blocks, which say how they are tested, are none of the text; and a list
or table may follow a paragraph at once.
"""

import re
from pathlib import Path
from typing import Any

_FENCE = re.compile(r"```(?P<language>\w+)[ \t]+(?P<marks>[^\n`]+)\Z")
_ITEM = re.compile(r"(- |\d+\. |\| )")


def on_config(config: Any, **_: Any) -> Any:
    """The navigation with all decisions, by number: their titles are their headings."""
    folder = Path(config["docs_dir"]) / "decisions"
    found = sorted(path.name for path in folder.glob("*.md") if path.name != "README.md")
    for item in config["nav"]:
        if "Decisions" in item:
            item["Decisions"] = ["decisions/README.md", *(f"decisions/{name}" for name in found)]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page as Python-Markdown wants it."""
    lines: list[str] = []
    fenced = False
    for line in markdown.split("\n"):
        if line.startswith("```"):
            fenced = not fenced
            lines.append(_FENCE.sub(_without_marks, line))
            continue
        before = lines[-1] if lines else ""
        if not fenced and _ITEM.match(line) and before.strip() and not _belongs_to_list(before):
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


def _belongs_to_list(line: str) -> bool:
    return line.startswith((" ", "|")) or _ITEM.match(line) is not None


def _without_marks(fence: re.Match[str]) -> str:
    """A block's first line without marks; `file=PATH` becomes its title."""
    marks = fence["marks"].strip()
    title = f' title="{marks.removeprefix("file=")}"' if marks.startswith("file=") else ""
    return f"```{fence['language']}{title}"
