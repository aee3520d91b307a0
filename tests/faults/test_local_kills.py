"""A process that trains by primitives, killed by SIGKILL in its second epoch and gone on with: the bits of one go."""

from pathlib import Path

import pytest

from tests.gpu.processes import Training
from tests.gpu.training import BITS

pytestmark = [pytest.mark.heavy, pytest.mark.full]


@pytest.mark.parametrize("case", [name for name in BITS if name.startswith("local")])
def test_killed_and_gone_on_with_it_has_the_bits_of_one_go(tmp_path: Path, case: str) -> None:
    whole = Training(tmp_path / "whole", case, "cpu").result()
    killed = Training(tmp_path / "killed", case, "cpu")
    killed.kill_after(1)
    again = Training(tmp_path / "killed", case, "cpu").result()
    assert len(set(whole["states"])) == 3
    assert again["states"] == whole["states"]
    assert again["losses"] == whole["losses"]
