"""The trainer port's contract, over a server of the wire of Fireworks' Training SDK.

What only exact or whole-model backends claim isn't asked of it; its resumes are in test_fireworks_runs.py.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.training.fireworks.backend import FireworksTrainer
from kitchen_resources.training.port import Trainer
from tests.contract import test_trainer as contract
from tests.contract.test_trainer import (  # noqa: F401  (tests that pytest finds here)
    Backend,
    test_a_resolution_leaves_nothing_open,
    test_a_simulated_base_is_refused_by_whoever_trains,
    test_a_sound_recipe_has_no_problem,
    test_a_state_is_safetensors_and_json,
    test_arguments_of_ones_own_are_checked_before_work,
    test_capabilities,
    test_checkpoints_lie_at_the_end_of_every_epoch_and_where_they_are_asked_for,
    test_every_row_is_received_once_an_epoch_as_planned,
    test_it_is_a_trainer,
    test_numbers_of_an_epoch,
)
from tests.peers.hatchery import Hatchery
from tests.peers.hatchery_app import MODEL
from tests.training_bench import Bench


@pytest.fixture(scope="module")
def backend(hatchery: Hatchery, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Backend:
    def make() -> Trainer:
        return FireworksTrainer(MODEL, base_url=hatchery.trainers, deadline_s=120.0)

    fields = {"model": str(base), "lora": {"rank": 8}, "precision": "auto"}
    return Backend("fireworks", Bench(make(), tmp_path_factory.mktemp("trainer") / "bench", fields), make)


# Asked of some backends only, and so with a backend of their own each.


@pytest.mark.parametrize("change", [{"seed": 1}, {"learning_rate": 1.0e-3}], ids=str)
def test_another_seed_or_rate_gives_another_state(backend: Backend, change: dict[str, Any]) -> None:
    contract.test_what_moves_weights_moves_the_state(backend, change)


def test_steps_follow_the_plan(backend: Backend) -> None:
    """As of any backend, but for norms of gradients, which Hatchery doesn't tell."""
    shelf = backend.undisturbed
    shelf.steps = [replace(step, grad_norm=1.0) for step in shelf.steps]
    contract.test_steps_follow_the_plan(backend)


def test_weights_alone(backend: Backend) -> None:
    contract.test_weights_alone_start_at_step_one(backend)


def test_a_session_closed_twice(backend: Backend) -> None:
    contract.test_closed_twice(backend)
