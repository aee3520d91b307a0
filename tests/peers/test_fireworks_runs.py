"""Whole runs by Fireworks' Training SDK on a real server of its wire: registered, resumed, refused, never written down."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.errors import BackendError, CapabilityError, ConfigError
from tests.peers.conftest import no_key_in
from tests.peers.hatchery import Hatchery
from tests.peers.hatchery_app import MODEL
from tests.peers.service_bench import ServiceBench, at_step, ended_by
from tests.tiny_models import load_plain

RATE = {"learning_rate": 5.0e-3}
SAMPLED = {"batch_size": 8, "group_size": 4, "groups_per_batch": 2, "evaluations": [], "held_out": "0"}


def bench_at(folder: Path, server: Hatchery, base: Path) -> ServiceBench:
    config = {"base_model": MODEL, "base_url": server.trainers, "request_deadline_s": 60.0}
    return ServiceBench(folder, base, ("fireworks", config))


@pytest.fixture
def bench(tmp_path: Path, hatchery: Hatchery, base: Path) -> Iterator[ServiceBench]:
    yield bench_at(tmp_path, hatchery, base)
    no_key_in(tmp_path)
    assert "a-key-for-the-tests" not in hatchery.log


def test_a_run_learns_and_what_it_made_is_like_any_other(bench: ServiceBench) -> None:
    result = bench.run(RATE)
    losses = bench.losses()
    assert sorted(losses) == list(range(1, 9))
    assert losses[7] + losses[8] < losses[1] + losses[2] - 0.2
    entries = bench.head().entries()
    assert [(entry.step, entry.epoch_complete) for entry in entries] == [(4, True), (8, True)]
    for entry in entries:
        manifest = bench.store.manifest(entry)
        (state,) = manifest.external
        assert state.uri.startswith("kitchen-tests/run-")
        assert set(manifest.files) == {"adapter_config.json", "adapter_model.safetensors", "fireworks.json"}
        rows = [row for step in bench.store.ledger(manifest) for row in step]
        assert len(set(rows)) == len(rows) == 32
    measured = [next(iter(entry.evaluations.values())).metrics["held_out/loss"] for entry in entries]
    assert measured[1] < measured[0] < 6.0
    assert sum(weight.numel() for weight in load_plain(Path(result.model_path)).parameters()) > 100_000

    again = bench.run(RATE)
    assert (again.fingerprint, again.optimizer_steps) == (result.fingerprint, 0)
    assert len(bench.losses()) == 8


def test_a_killed_run_goes_on_from_its_last_checkpoint(bench: ServiceBench) -> None:
    assert ended_by(signal.SIGKILL, bench, 3) == -signal.SIGKILL
    before = {entry.step: entry.state_digest for entry in bench.head().entries()}
    result = bench.run({"checkpoint_steps": 2, "lease_wait_s": 120.0})
    entries = {entry.step: entry.state_digest for entry in bench.head().entries()}
    assert sorted(entries) == [2, 4, 6, 8]
    assert {step: entries[step] for step in before} == before
    assert result.optimizer_steps == 8 - max(before)


def test_a_preference_run(bench: ServiceBench) -> None:
    bench.run(
        {
            "dataset": "embedded:date_pairs",
            "max_rows": 24,
            "beta": 0.5,
            "loss_type": ["sigmoid"],
            "loss_weights": None,
            "epochs": 2,
            "learning_rate": 5.0e-3,
            "held_out": "0",
            "eval_every": 0,
        },
        recipe="preference",
    )
    first, last = (bench.store.manifest(entry).metrics for entry in bench.head().entries())
    assert last["loss"] < first["loss"] < 0.75
    assert last["margin"] > first["margin"]


@pytest.mark.parametrize(
    ("recipe", "fields", "message"),
    [
        ("supervised", {"lora": None}, "doesn't train the whole model"),
        ("supervised", {"lora": {"rank": 8, "alpha": 16}}, "lora.alpha: must be 32 on this backend"),
        ("distillation", {"mode": "on_policy", "teacher": "embedded:tiny"}, "mode: on_policy samples"),
        ("reinforcement", SAMPLED, "doesn't train reinforcement"),
    ],
)
def test_what_the_service_cannot_do_is_refused_before_any_work(
    bench: ServiceBench, recipe: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises((CapabilityError, ConfigError), match=message):
        bench.run(fields, recipe=recipe)
    assert bench.store.find("") == []


def test_a_server_killed_in_mid_epoch_that_has_forgotten_all_when_it_is_back(tmp_path: Path, base: Path) -> None:
    """Hatchery keeps what it knows of its sessions in memory: no state that it saved before can be restored after."""
    with Hatchery(tmp_path / "server", base) as server:
        bench = bench_at(tmp_path / "bench", server, base)
        # Long enough for a busy machine to answer, and not for a server that is gone.
        with at_step(bench, 5, server.kill), pytest.raises(BackendError) as told:
            bench.run(RATE, request_deadline_s=30.0)
        assert told.value.mendable
        assert [entry.step for entry in bench.head().entries()] == [4]
        server.start()
        result = bench.run(RATE)
        assert [entry.step for entry in bench.head().entries()] == [4, 8]
        assert result.optimizer_steps == 8
        (quarantined,) = [entry for entry in bench.head().checkpoints if entry.payload == "quarantined"]
        assert quarantined.step == 4
