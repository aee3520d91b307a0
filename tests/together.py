"""Which tests stay together when several processes run them: those that share what took long to make."""

from typing import Any

from xdist.scheduler import LoadScopeScheduling

UNITS = (
    *("tests/docs/test_readme.py", "tests/ui/test_recovery.py", "tests/ui"),
    *("tests/contract/test_trainer.py", "tests/contract/test_trainer_methods.py"),
    *("tests/faults/test_torchrun.py", "tests/faults/test_s3_kills.py"),
    *("tests/workflows/test_canceling.py", "tests/workflows/test_method_bits.py"),
)
"""Files and folders whose tests are of one unit; the first that a test lies in counts."""


def unit_of(path: str) -> str:
    """The unit that a file is of, or ""."""
    return next((unit for unit in UNITS if path == unit or path.startswith(f"{unit}/")), "")


def in_order(items: list[Any]) -> None:
    """Units before single tests, in the order above: a process has the next one waiting behind the one that it runs."""
    places = {unit: place for place, unit in enumerate((*UNITS, ""))}
    items.sort(key=lambda item: places[unit_of(item.nodeid.partition("::")[0])])


class Together(LoadScopeScheduling):
    """Gives out units whole, and every other test by itself."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid.partition("::")[0]) or nodeid


def scheduler(config: Any, log: Any) -> Together | None:
    """For `--dist loadscope`; xdist's own groups don't hold with this version of pytest, whose ids can't be changed."""
    return Together(config, log) if config.getoption("dist") == "loadscope" else None
