"""Writes the pages that follow from the code: docs/NAME.md by docs/pages/NAME.py, from NAME.template.md beside it.

python docs/generate.py           writes them
python docs/generate.py --check   fails when one isn't up to date
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in (HERE / "pages").glob("*.py")))


def page_module(name: str) -> ModuleType:
    """The module that renders a page: its `render(template)` gives the text."""
    spec = importlib.util.spec_from_file_location(f"kitchen_page_{name}", HERE / "pages" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def render(name: str) -> str:
    """The text of a page."""
    template = HERE / "pages" / f"{name}.template.md"
    text: str = page_module(name).render(template.read_text(encoding="utf-8"))
    return text


def main(arguments: list[str]) -> int:
    """Write the pages, or compare them; the exit status."""
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)  # noqa: T201
        return 2
    stale = []
    for name in NAMES:
        page, text = HERE / f"{name}.md", render(name)
        if not arguments:
            page.write_text(text, encoding="utf-8")
        elif not page.is_file() or page.read_text(encoding="utf-8") != text:
            stale.append(page.name)
    if stale:
        print(f"not up to date: {', '.join(stale)}; run: python docs/generate.py", file=sys.stderr)  # noqa: T201
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
