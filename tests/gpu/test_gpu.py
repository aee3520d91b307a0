"""Training on a CUDA GPU: bits that repeat and resume, the CPU's losses, memory as told, and an end that says why."""

from pathlib import Path

import pytest
import torch

from kitchen_resources.errors import OutOfMemory
from tests.gpu.processes import Training
from tests.gpu.training import MEMORY, REPEATED, train

pytestmark = pytest.mark.heavy


def test_there_is_a_gpu() -> None:
    assert torch.cuda.is_available(), "these tests need a CUDA GPU and a build of torch for it"


@pytest.mark.parametrize("case", REPEATED)
def test_killed_and_gone_on_with_it_has_the_bits_of_one_go(tmp_path: Path, case: str) -> None:
    whole = Training(tmp_path / "whole", case)
    killed = Training(tmp_path / "killed", case)
    killed.kill_after(1)
    again = Training(tmp_path / "killed", case).result()
    in_one_go = whole.result()
    assert in_one_go["device"] == torch.cuda.get_device_name(0)
    assert len(in_one_go["states"]) == 3 == len(set(in_one_go["states"]))
    assert again["states"] == in_one_go["states"]
    assert again["losses"] == in_one_go["losses"]
    assert in_one_go["told_peak_bytes"] > 0


@pytest.mark.parametrize("case", ["trl, supervised, fp32", "local, supervised, fp32"])
def test_losses_are_those_of_a_cpu(tmp_path: Path, case: str) -> None:
    there = Training(tmp_path / "gpu", case)
    here = Training(tmp_path / "cpu", case, "cpu").result()
    assert there.result()["losses"] == pytest.approx(here["losses"], rel=1.0e-4)


@pytest.mark.parametrize("case", MEMORY)
def test_a_step_takes_about_the_memory_that_was_told_before(tmp_path: Path, case: str) -> None:
    found = Training(tmp_path, case).result()
    ratio = found["peak_bytes"] / found["estimated_bytes"]
    print(f"{case}: {found['peak_bytes'] / 2**30:.2f} GiB, {ratio:.2f} of what was told, {found['seconds']:.1f} s")
    assert found["told_peak_bytes"] == pytest.approx(found["peak_bytes"], rel=0.05)
    assert 0.5 < ratio < 1.5


def test_too_little_memory_ends_the_epoch_and_says_what_to_lower(tmp_path: Path) -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2**30 / total)
    try:
        with pytest.raises(OutOfMemory, match=r"(?s)cuda:0 ran out of memory.*lower batch_size \(8\)"):
            train(tmp_path, MEMORY["full, fp32"], "cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
