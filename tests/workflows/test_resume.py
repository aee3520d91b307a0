"""Going on: after a failure, in other processes, after SIGKILL, and in a new run; always the bits of one go."""

import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet
import pytest
import yaml
from dagster._core.definitions.reconstruct import ReconstructableRepository
from plain import PlainTrainer, weights_digest

import kitchen_assets as kitchen
from kitchen_resources.errors import KitchenError, TrainingDiverged
from kitchen_resources.training.trl import resume, session
from tests.workflows import cli
from tests.workflows import test_bits as bits
from tests.workflows.conftest import SMALL, Bench

LORA = {"lora": {"rank": 4, "alpha": 8, "dropout": 0.1}}
PACKED = bits.CASES["LoRA, dropout, accumulation, packing"][0]
"""What test_bits.py compares with the plain script: bits of one go are the plain script's."""


def _job() -> Any:
    return ReconstructableRepository.for_module("kitchen_assets.definitions", "defs").get_reconstructable_job(
        "supervised"
    )


def _run_config(bench: Bench, recipe: dict[str, Any]) -> dict[str, Any]:
    ports = {key: {"config": value} for key, value in bench.resources().items()}
    return {"resources": {**ports, "supervised": {"config": recipe}}}


def _failing_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Make training fail once, at a step."""
    real = session.EpochAttempt.step
    failed: list[int] = []

    def fail(self: Any, metrics: Any, rows: list[int]) -> None:
        if metrics.global_step == step and not failed:
            failed.append(step)
            raise TrainingDiverged("planted", where=f"step {step}")
        real(self, metrics, rows)

    monkeypatch.setattr(session.EpochAttempt, "step", fail)


@pytest.mark.heavy
@pytest.mark.full
def test_a_failure_in_epoch_2_and_re_execution_from_failure_has_the_bits_of_one_go(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {**SMALL, **PACKED}
    _failing_at(monkeypatch, step=20)
    first = dg.execute_job(_job(), instance=bench.instance, run_config=_run_config(bench, recipe))
    assert not first.success
    failed = [event.step_key for event in first.all_events if event.is_step_failure]
    assert "supervised__model.supervised__train_epoch[epoch_0002]" in failed
    # Its sibling fails at once, and does not train epoch 3 on top of a hole.
    assert "supervised__model.supervised__train_epoch[epoch_0003]" in failed

    options = dg.ReexecutionOptions.from_failure(first.run_id, bench.instance)
    second = dg.execute_job(_job(), instance=bench.instance, reexecution_options=options)
    assert second.success
    (fingerprint,) = bench.checkpoints.find("")
    split = weights_digest(bench.weights(fingerprint))

    other = Bench(bench.folder / "one-go", bench.folder / "one", bench.instance)
    whole = other.run(PACKED)
    assert whole.fingerprint == fingerprint
    assert split == weights_digest(other.weights(whole.fingerprint))
    states = [entry.state_digest for entry in bench.checkpoints.head(fingerprint).entries()]
    assert states == [checkpoint["state_digest"] for checkpoint in whole.checkpoints]


def _forget_the_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every resume go on without the optimiser's state."""
    real = resume.write_resume_folder

    def forgetful(*args: Any, **kwargs: Any) -> Path:
        folder = real(*args, **kwargs)
        (folder / "optimizer.pt").unlink()
        return folder

    monkeypatch.setattr(session, "write_resume_folder", forgetful)


@pytest.mark.heavy
@pytest.mark.full
def test_the_multiprocess_executor_has_the_same_bits(bench: Bench) -> None:
    # Dagster's other way to start them, spawn, is that of test_canceling.
    execution = yaml.safe_load((cli.ROOT / "examples" / "configs" / "processes.yaml").read_text())["execution"]
    # A process of its own for each stage imports everything anew: two epochs show what three would.
    recipe = {**PACKED, "epochs": 2}
    here = bench.run(recipe)
    there = _in_processes(bench, {**SMALL, **recipe}, execution)
    assert there.checkpoints.find("") == [here.fingerprint]
    assert weights_digest(there.weights(here.fingerprint)) == weights_digest(bench.weights(here.fingerprint))


def _in_processes(bench: Bench, recipe: dict[str, Any], execution: dict[str, Any]) -> Bench:
    """Run with each step in a process of its own; returns a bench over its store."""
    store, home = bench.folder / "processes", bench.folder / "home"
    config = cli.write_config(bench.folder / "processes.yaml", store, recipe, execution=execution)
    done = cli.execute(config, home)
    assert done.returncode == 0, done.stderr[-3000:]
    pids = {line.split("pid: ")[1].split(")")[0] for line in done.stderr.splitlines() if "pid: " in line}
    assert len(pids) > 3, "the steps did not run in processes of their own"
    return Bench(store, bench.folder / "p", bench.instance)


@pytest.mark.full
@pytest.mark.heavy
def test_after_sigkill_at_70_percent_of_an_epoch_it_goes_on_from_the_last_step_checkpoint(
    bench: Bench, plain: PlainTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {**SMALL, "lora": bits.LORA, "max_rows": 1100, "epochs": 1, "checkpoint_steps": 10}
    steps, interval = 62, 10
    home = bench.folder / "home"
    config = cli.write_config(bench.folder / "killed.yaml", bench.root, recipe)
    process = subprocess.Popen(
        cli.command(config), env=cli.environment(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while len(cli.events(config, "training.step")) < 0.7 * steps:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = [event["metadata"]["step"] for event in cli.events(config, "training.step")]
    published = [event["metadata"]["step"] for event in cli.events(config, "training.checkpoint")]

    killed = shutil.copytree(bench.root, bench.folder / "killed")

    log = {"console": False, "jsonl": str(config.with_suffix(".jsonl"))}
    bench.run(recipe, telemetry=log)
    after = [event["metadata"]["step"] for event in cli.events(config, "training.step")][len(before) :]
    assert after == list(range(published[-1] + 1, steps + 1))
    repeated = len(before) + len(after) - steps
    assert 0 <= repeated <= interval

    (fingerprint,) = bench.checkpoints.find("")
    entry = bench.checkpoints.head(fingerprint).entries()[-1]
    ledger = bench.checkpoints.ledger(bench.checkpoints.manifest(entry))
    assert len(ledger) == steps
    assert len({row for step in ledger for row in step}) == sum(map(len, ledger)) == 990

    written = {"model": bench.embedded_model(), "parquet": bench.prepared(), "lora": bits.PLAIN_LORA}
    one_go = plain.train(bench.folder / "plain", **written, arguments={**bits.PLAIN, "num_train_epochs": 1})
    assert weights_digest(bench.weights(fingerprint)) == one_go

    # The control: what goes on without the optimiser's state ends elsewhere.
    _forget_the_optimizer(monkeypatch)
    forgetful = Bench(killed, bench.folder / "forgetful", bench.instance)
    assert forgetful.run(recipe).optimizer_steps == len(after)
    assert weights_digest(forgetful.weights(fingerprint)) != one_go


@pytest.mark.full
@pytest.mark.heavy
def test_a_finished_recipe_again_does_nothing_and_only_what_moves_weights_trains_anew(
    bench: Bench, write_rows: Callable[..., Path]
) -> None:
    rows = [{"prompt": f"say {n}", "completion": f"{n} it is"} for n in range(40)]
    path = write_rows(rows)
    config = {"dataset": str(path), "max_rows": None, "epochs": 2, "eval_every": 1}
    first = bench.run(config)
    assert first.optimizer_steps == 2 * 3
    trained = pyarrow.parquet.read_table(bench.prepared(), columns=["row_id"])["row_id"].to_pylist()

    def again(**changes: Any) -> kitchen.RunResult:
        return bench.run({**config, **changes})

    for changes in ({}, {"keep_last": 1}, {"eval_every": 0}, {"checkpoint_steps": 2}, {"select": "best"}):
        result = again(**changes)
        assert (result.optimizer_steps, result.fingerprint) == (0, first.fingerprint), changes
    moved = bench.root.with_name("moved")
    shutil.copytree(bench.root, moved)
    elsewhere = Bench(moved, bench.folder / "m", bench.instance)
    assert elsewhere.run(config).optimizer_steps == 0

    for changes, said in (
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"learning_rate": 1.0e-3}, "learning_rate: 0.003 -> 0.001"),
        ({"weight_decay": 0.1}, "weight_decay: 0.0 -> 0.1"),
    ):
        result = again(**changes)
        assert result.optimizer_steps == 6
        assert result.fingerprint != first.fingerprint
        assert any(said in message for message in _log(bench, result.run_id)), said
    rows[trained[7]]["completion"] = "changed"
    write_rows(rows)
    result = again()
    assert result.optimizer_steps == 6
    assert any("data: " in message for message in _log(bench, result.run_id))


@pytest.mark.full
@pytest.mark.heavy
def test_continuing_from_3_to_5_epochs_does_exactly_two_at_the_new_learning_rate(bench: Bench) -> None:
    first = bench.run(LORA)
    more = {**LORA, "epochs": 5, "learning_rate": 1.0e-3, "continue_from": first.fingerprint[:12]}
    second = bench.run(more)
    assert second.optimizer_steps == 2 * 13
    assert second.fingerprint != first.fingerprint
    head = bench.checkpoints.head(second.fingerprint)
    manifests = [bench.checkpoints.manifest(entry) for entry in head.entries()]
    steps = [step for manifest in manifests for step in bench.checkpoints.steps(manifest)]
    assert [step.global_step for step in steps] == list(range(40, 66))
    # Linear from 1e-3 over all 65 steps: at step 40 (39 done) 26 of 65 are left.
    assert steps[0].learning_rate == pytest.approx(1.0e-3 * 26 / 65, rel=1e-12)
    assert manifests[0].parent == first.checkpoints[-1]["state_digest"]

    assert bench.run(more).optimizer_steps == 0
    old_rate = bench.run({**more, "learning_rate": 3.0e-3})
    assert weights_digest(bench.weights(old_rate.fingerprint)) != weights_digest(bench.weights(second.fingerprint))

    with pytest.raises(KitchenError, match="is 3, and the run that is continued has 3 epochs already"):
        bench.run({**more, "epochs": 3})


@pytest.mark.full
@pytest.mark.heavy
def test_bits_depend_neither_on_evaluation_nor_on_step_checkpoints_nor_on_the_caller(bench: Bench) -> None:
    import torch

    plain = weights_digest(bench.weights(bench.run(LORA).fingerprint))
    torch.manual_seed(99)
    torch.rand(7)
    other = Bench(bench.folder / "other", bench.folder / "o", bench.instance)
    busy = other.run(
        {**LORA, "eval_every": 1, "checkpoint_steps": 5, "evaluations": [{"max_tokens": 4, "samples": 4}]}
    )
    assert weights_digest(other.weights(busy.fingerprint)) == plain
    assert len(busy.checkpoints) > 3
    assert "held_out/exact_match" in busy.evaluation


def _log(bench: Bench, run_id: str) -> list[str]:
    return [record.event_log_entry.user_message for record in bench.instance.get_records_for_run(run_id).records]
