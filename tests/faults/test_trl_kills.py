"""A sample of the soak: each variant of real training killed at random, and ended as if nothing had happened."""

import random
from pathlib import Path

import pytest

from tests.faults.trl_kills import VARIANTS, campaign, import_everything

pytestmark = pytest.mark.heavy


SAMPLE = "LoRA, dropout, step checkpoints"


@pytest.mark.parametrize(
    ("variant", "kills"),
    [(SAMPLE, 4), *(pytest.param(variant, 10, marks=pytest.mark.full) for variant in VARIANTS)],
)
def test_killed_at_random_it_ends_as_undisturbed(
    tmp_path: Path, variant: str, kills: int, capsys: pytest.CaptureFixture[str]
) -> None:
    import_everything()
    tally = campaign(tmp_path, variant, kills, random.Random(variant))
    with capsys.disabled():
        print(f"\n{variant}: {tally.line()}")
    assert tally.mismatches == []
    assert tally.kills >= kills
