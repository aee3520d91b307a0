"""Whole runs on a real server of the Tinker API: what is registered, resumed, refused and never written down."""

import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import kitchen_assets as kitchen
from kitchen_resources.errors import BackendError, CapabilityError, ConfigError
from tests.peers.conftest import no_key_in
from tests.peers.service_bench import ServiceBench, at_step, ended_by
from tests.peers.skyrl import SkyRL, skyrl
from tests.tiny_models import load_plain


class Bench(ServiceBench):
    """A store, and runs on a server."""

    def __init__(self, folder: Path, server: SkyRL, base: Path) -> None:
        config = {"base_model": str(base), "base_url": server.url, "request_deadline_s": 60.0}
        super().__init__(folder, base, ("tinker", config))
        self.server = server


@pytest.fixture
def bench(tmp_path: Path, server: SkyRL, base: Path) -> Iterator[Bench]:
    found = Bench(tmp_path, server, base)
    yield found
    no_key_in(tmp_path)
    assert "a-key-for-the-tests" not in server.log


def test_a_run_learns_and_what_it_made_is_like_any_other(bench: Bench) -> None:
    result = bench.run()
    losses = bench.losses()
    assert sorted(losses) == list(range(1, 9))
    assert sum(losses[step] for step in (7, 8)) < sum(losses[step] for step in (1, 2)) - 0.2

    head = bench.head()
    entries = head.entries()
    assert [(entry.step, entry.epoch_complete) for entry in entries] == [(4, True), (8, True)]
    for entry in entries:
        manifest = bench.store.manifest(entry)
        (state,) = manifest.external
        assert state.uri.startswith("tinker://")
        assert state.expires > "2026"
        assert state.probe_loss is not None
        assert set(manifest.files) == {"adapter_config.json", "adapter_model.safetensors", "tinker.json"}
        rows = bench.store.ledger(manifest)
        assert sorted(row for step in rows for row in step) == sorted({row for step in rows for row in step})
        assert sum(map(len, rows)) == 32
    # What is measured here, of the adapter that was downloaded, is what was trained there.
    measured = [next(iter(entry.evaluations.values())).metrics for entry in entries]
    losses_held_out = [metrics["held_out/loss"] for metrics in measured]
    assert losses_held_out[1] < losses_held_out[0] < 6.0
    assert result.evaluation is not None

    plain = load_plain(Path(result.model_path))
    assert sum(weight.numel() for weight in plain.parameters()) > 100_000

    again = bench.run()
    assert again.fingerprint == result.fingerprint
    assert again.optimizer_steps == 0
    assert len(bench.losses()) == 8


def test_a_canceled_run_leaves_nothing_loaded_at_the_service(bench: Bench) -> None:
    def loaded() -> set[str]:
        with closing(sqlite3.connect(bench.server.folder / "tinker.db")) as db:
            return {model for (model,) in db.execute("select model_id from models where status != 'unloaded'")}

    before = loaded()
    assert ended_by(signal.SIGINT, bench, 1) > 0
    head = bench.head()
    stopped_at = head.entries()[-1].step
    assert stopped_at < 8
    assert (head.holder, head.end) == (None, None)
    for _ in range(600):
        if loaded() <= before:
            break
        time.sleep(0.1)
    assert loaded() <= before
    assert bench.run({"checkpoint_steps": 2}).optimizer_steps == 8 - stopped_at


def test_a_killed_run_goes_on_from_its_last_checkpoint(bench: Bench) -> None:
    assert ended_by(signal.SIGKILL, bench, 3) == -signal.SIGKILL
    before = {entry.step: entry.state_digest for entry in bench.head().entries()}
    result = bench.run({"checkpoint_steps": 2, "lease_wait_s": 120.0})
    entries = {entry.step: entry.state_digest for entry in bench.head().entries()}
    assert sorted(entries) == [2, 4, 6, 8]
    assert {step: entries[step] for step in before} == before
    assert result.optimizer_steps == 8 - max(before)
    assert min(bench.losses()) == 1
    for epoch, end in ((1, 4), (2, 8)):
        entry = bench.head().at(end)
        assert entry is not None
        rows = [row for step in bench.store.ledger(bench.store.manifest(entry)) for row in step]
        assert len(set(rows)) == len(rows) == 32, epoch


def test_reinforcement_on_samples_of_the_service(bench: Bench) -> None:
    result = bench.run(
        {
            "environment": {"name": "arithmetic", "args": {"count": 6}, "workers": 1},
            "steps_per_epoch": 2,
            "group_size": 4,
            "groups_per_batch": 2,
            "max_tokens": 4,
            "epochs": 1,
            "held_out": "0",
            "eval_every": 0,
            "loss_type": "dapo",
            "rewards": [{"name": "length_penalty", "args": {}, "weight": 1.0}],
        },
        recipe="reinforcement",
    )
    assert result.optimizer_steps == 2
    (entry,) = bench.head().entries()
    manifest = bench.store.manifest(entry)
    assert len(bench.store.transcript(manifest)) > 0
    assert "reward" in manifest.metrics


def test_distillation_on_policy_with_a_teacher_on_this_machine(bench: Bench, tmp_path: Path) -> None:
    learned = Bench(tmp_path / "taught", bench.server, bench.base)
    taught = kitchen.run(
        "supervised",
        {
            **learned.config(
                {"max_rows": 600, "held_out": "0", "eval_every": 0, "learning_rate": 3.0e-3, "lora": None}
            )
        },
        {**learned.resources(), "trainer": {"backend": {"trl": {"threads": 1}}}},
    )
    bench.run(
        {
            "mode": "on_policy",
            "teacher": taught.model_path,
            "max_rows": 80,
            "max_tokens": 12,
            "epochs": 4,
            "held_out": "0",
            "eval_every": 0,
            "divergence": 1.0,
        },
        recipe="distillation",
    )
    losses = [bench.store.manifest(entry).metrics["reverse_kl"] for entry in bench.head().entries()]
    assert losses[-1] < losses[0]


def test_a_preference_run(bench: Bench) -> None:
    bench.run(
        {
            "dataset": "embedded:date_pairs",
            "max_rows": 24,
            "beta": 0.5,
            "loss_type": ["sigmoid"],
            "loss_weights": None,
            "epochs": 2,
            "learning_rate": 1.0e-2,
            "held_out": "0",
            "eval_every": 0,
        },
        recipe="preference",
    )
    first, last = (bench.store.manifest(entry).metrics for entry in bench.head().entries())
    assert last["loss"] < first["loss"] < 0.75
    assert last["margin"] > first["margin"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora": None}, "doesn't train the whole model"),
        ({"lora": {"rank": 8, "alpha": 16}}, "lora.alpha: must be 32 on this backend"),
        ({"lora": {"rank": 8, "dropout": 0.1}}, "lora.dropout: must be 0.0 on this backend"),
        ({"precision": "bf16"}, "precision: is the service's own affair"),
        ({"lora": {"rank": 8}, "quantization": "4bit"}, "has no 4bit base"),
    ],
)
def test_what_the_service_cannot_do_is_refused_before_any_work(
    bench: Bench, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises((CapabilityError, ConfigError), match=message):
        bench.run(fields)
    assert bench.store.find("") == []


def test_another_base_than_it_serves_is_refused(bench: Bench) -> None:
    with pytest.raises(CapabilityError, match="no base model 'Qwen/Qwen3-8B'"):
        bench.run(base_model="Qwen/Qwen3-8B")


# The peer is lost.


@pytest.fixture
def own_server(tmp_path: Path, base: Path) -> Iterator[SkyRL]:
    with skyrl(tmp_path / "skyrl", base) as running:
        yield running


def test_a_server_killed_in_mid_epoch_and_started_again(tmp_path: Path, own_server: SkyRL, base: Path) -> None:
    bench = Bench(tmp_path, own_server, base)

    def restart() -> None:
        own_server.kill()
        own_server.start()

    with at_step(bench, 3, restart):
        result = bench.run({"checkpoint_steps": 2, "epochs": 3}, request_deadline_s=40.0)
    assert sorted(entry.step for entry in bench.head().entries()) == [2, 4, 6, 8, 10, 12]
    assert result.evaluation is not None
    losses = bench.losses()
    assert losses[12] < losses[1] - 0.2


def test_a_server_that_stays_away_ends_the_run_with_an_error_that_can_be_mended(
    tmp_path: Path, own_server: SkyRL, base: Path
) -> None:
    bench = Bench(tmp_path, own_server, base)
    # Long enough for a busy machine to answer, and not for a server that is gone.
    with at_step(bench, 5, own_server.kill), pytest.raises(BackendError) as told:
        bench.run(request_deadline_s=30.0)
    assert told.value.mendable
    assert [entry.step for entry in bench.head().entries()] == [4]
    own_server.start()
    result = bench.run()
    assert [entry.step for entry in bench.head().entries()] == [4, 8]
    assert result.optimizer_steps == 4
