"""The summary line of a `make` target: tests by suite, and in all, from the JUnit files that pytest wrote."""

import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path


def main(title: str, folder: Path) -> int:
    counts: Counter[str] = Counter()
    bad = 0
    seconds = 0.0
    for path in sorted(folder.glob("*.xml")):
        suite = ElementTree.parse(path).getroot().find("testsuite")
        assert suite is not None, path
        counts.update(_suite(case.get("classname", "")) for case in suite.iter("testcase"))
        bad += sum(int(suite.get(kind, 0)) for kind in ("failures", "errors", "skipped"))
        seconds += float(suite.get("time", 0))
    by_suite = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    verdict = "all passed" if counts and not bad else f"{bad} failed, errored or skipped"
    print(f"{title}: {counts.total()} tests, {verdict} ({by_suite}) in {seconds:.0f} s of tests")
    return 1 if bad or not counts else 0


def _suite(classname: str) -> str:
    """The folder under `tests` of a test's module; the formulas have a name of their own."""
    _, folder, module = [*classname.split("."), "", "", ""][:3]
    return "formulas" if module.startswith("test_formulas") else folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
