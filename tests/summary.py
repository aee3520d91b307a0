"""The summary line of a `make` target: tests by suite, and in all, from the JUnit files that pytest wrote."""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def main(title: str, folder: Path) -> int:
    counts: dict[str, int] = {}
    bad = 0
    seconds = 0.0
    for path in sorted(folder.glob("*.xml")):
        suite = ElementTree.parse(path).getroot().find("testsuite")
        assert suite is not None, path
        counts[path.stem] = int(suite.get("tests", 0))
        bad += sum(int(suite.get(kind, 0)) for kind in ("failures", "errors", "skipped"))
        seconds += float(suite.get("time", 0))
    by_suite = ", ".join(f"{name} {count}" for name, count in counts.items())
    verdict = "all passed" if counts and not bad else f"{bad} failed, errored or skipped"
    print(f"{title}: {sum(counts.values())} tests, {verdict} ({by_suite}) in {seconds:.0f} s of tests")
    return 1 if bad or not counts else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
