"""A block that may do what it likes with random numbers and threads, and leaves them as they were."""

import random
from typing import Any

import numpy
import pytest
import torch

from kitchen_resources.numerics import preserved_numerics


def drawn() -> tuple[float, float, float]:
    """The next number of each generator, which moves it."""
    return random.random(), float(numpy.random.random()), torch.rand(1).item()


def settings() -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "benchmark": torch.backends.cudnn.benchmark,
        "cudnn": torch.backends.cudnn.deterministic,
    }


def disturb() -> None:
    random.seed(1)
    numpy.random.seed(1)
    torch.manual_seed(1)
    drawn()
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.deterministic = True


def fail_disturbed() -> None:
    with preserved_numerics():
        disturb()
        raise ZeroDivisionError


def test_the_next_numbers_are_those_that_would_have_been() -> None:
    with preserved_numerics():
        for seed in (random.seed, numpy.random.seed, torch.manual_seed):
            seed(5)
        drawn()
        undisturbed = [drawn() for _ in range(3)]
        for seed in (random.seed, numpy.random.seed, torch.manual_seed):
            seed(5)
        drawn()
        with preserved_numerics():
            disturb()
        assert [drawn() for _ in range(3)] == undisturbed


def test_threads_and_defaults_are_as_before() -> None:
    before = settings()
    with preserved_numerics():
        disturb()
        changed = settings()
        assert all(changed[name] != before[name] for name in before), changed
    assert settings() == before


@pytest.mark.parametrize("warn_only", [False, True])
def test_determinism_comes_back_as_strict_as_it_was(warn_only: bool) -> None:
    with preserved_numerics():
        torch.use_deterministic_algorithms(True, warn_only=warn_only)
        with preserved_numerics():
            torch.use_deterministic_algorithms(False)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled() is warn_only


def test_also_after_a_failure() -> None:
    before = settings()
    with preserved_numerics():
        random.seed(3)
        expected = random.random()
        random.seed(3)
        with pytest.raises(ZeroDivisionError):
            fail_disturbed()
        assert random.random() == expected
        assert settings() == before
