"""A sample of the soak: each variant of real training killed at random, and ended as if nothing had happened."""

import random
from pathlib import Path

import pytest

from tests.faults.trl_kills import VARIANTS, campaign, import_everything

pytestmark = pytest.mark.heavy


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_at_random_it_ends_as_undisturbed(
    tmp_path: Path, variant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import_everything()
    tally = campaign(tmp_path, variant, 4, random.Random(variant))
    with capsys.disabled():
        print(f"\n{variant}: {tally.line()}")
    assert tally.mismatches == []
    assert tally.kills >= 4
