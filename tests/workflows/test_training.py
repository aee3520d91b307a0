"""Supervised training on TRL: what it refuses, records, selects and stops at."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from plain import weights_digest

import kitchen_assets as kitchen
from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.errors import ConfigError, DiskFull, TrainingDiverged
from kitchen_resources.formulas.batches import batch_plan
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.telemetry.jsonl import read_jsonl
from kitchen_resources.training.trl import supervised
from tests.workflows.conftest import SMALL, Bench

pytestmark = pytest.mark.heavy


def _nan_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Make the loss of one optimiser step NaN."""
    trainer = supervised.trainer_class(SupervisedRecipe())
    real = trainer.compute_loss

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = real(self, *args, **kwargs)
        return loss * math.nan if self.state.global_step == step - 1 else loss

    monkeypatch.setattr(trainer, "compute_loss", compute_loss)


def test_a_loss_that_is_not_finite_stops_the_epoch_with_step_and_rows_and_publishes_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    _nan_at(monkeypatch, step=3)
    with pytest.raises(TrainingDiverged) as caught:
        bench.run({"checkpoint_steps": 3})
    ids = [int(line) for line in _ids_of_step(bench, epoch=1, step=3)]
    assert "epoch 1, step 3: the loss is nan at learning rate" in str(caught.value)
    assert f"the rows of this step are {', '.join(map(str, ids))}" in str(caught.value)
    (fingerprint,) = bench.checkpoints.find("")
    head = bench.checkpoints.head(fingerprint)
    assert head.entries() == []
    assert head.holder is None


def _ids_of_step(bench: Bench, *, epoch: int, step: int) -> list[int]:
    import pyarrow.parquet

    ids = pyarrow.parquet.read_table(bench.prepared(), columns=["row_id"])["row_id"].to_pylist()
    plan = batch_plan(len(ids), seed=0, epoch=epoch - 1, batch_size=16)
    return [ids[index] for index in plan[step - 1]]


def test_every_step_is_recorded_with_its_numbers_and_its_rows(bench: Bench) -> None:
    log = bench.folder / "events.jsonl"
    result = bench.run({"epochs": 2}, telemetry={"console": False, "jsonl": str(log)})
    steps = [event for event in read_jsonl(log) if event["event"] == "training.step"]
    assert [event["metadata"]["step"] for event in steps] == list(range(1, 27))
    assert {event["metadata"]["total_steps"] for event in steps} == {26}
    rates = [event["measurements"]["learning_rate"] for event in steps]
    assert rates == [3.0e-3 * ((26 - step) / 26) for step in range(26)]
    for event in steps:
        numbers = event["measurements"]
        assert numbers["tokens_per_second"] == pytest.approx(numbers["tokens"] / numbers["duration_s"])
        assert numbers["host_memory_bytes"] > 100 << 20
        assert numbers["grad_norm"] > 0
    losses = [event["measurements"]["loss"] for event in steps]
    assert sum(losses[-5:]) / 5 < 0.6 * sum(losses[:5]) / 5
    # Each row's answer is 11 tokens: ten characters and the end of the turn.
    assert [int(event["measurements"]["tokens"]) for event in steps[:13]] == [16 * 11] * 12 + [6 * 11]

    for entry in bench.checkpoints.head(result.fingerprint).entries():
        ledger = bench.checkpoints.ledger(bench.checkpoints.manifest(entry))
        planned = [_ids_of_step(bench, epoch=entry.epoch, step=step) for step in range(1, 14)]
        assert ledger == planned


@pytest.mark.full
def test_out_of_memory_names_what_to_lower(tmp_path: Path) -> None:
    script = f"""
import resource, sys
import psutil, torch, trl, peft, transformers
from trl import SFTTrainer
import kitchen_assets as kitchen
from kitchen_resources.errors import OutOfMemory
room = psutil.Process().memory_info().vms + (600 << 20)
resource.setrlimit(resource.RLIMIT_AS, (room, room))
resources = {{"blobs": {{"store": {{"local": {{"path": {str(tmp_path / "store")!r}}}}}}}, "telemetry": {{"console": False}}}}
try:
    kitchen.run("supervised", {{"batch_size": 4096, "epochs": 1, "eval_every": 0, "evaluations": []}}, resources)
except OutOfMemory as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "epoch 1: cpu ran out of memory" in done.stdout, done.stderr[-3000:]
    assert "lower batch_size (4096) and raise gradient_accumulation_steps by as much" in done.stdout
    assert "gradient_checkpointing: true" in done.stdout


@pytest.mark.full
def test_two_runs_in_one_process_have_the_bits_of_two_and_neither_caller_nor_network_notices(bench: Bench) -> None:
    import torch

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    threads = torch.get_num_threads()
    # bf16 is what would stay: the precision is kept in state of the process.
    first = bench.run({"epochs": 1, "precision": "bf16"})
    recipe = {"epochs": 1, "seed": 3, "evaluations": [{"max_tokens": 4, "samples": 4}]}
    second = bench.run(recipe)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads

    elsewhere = Bench(bench.folder / "alone", bench.folder / "a", bench.instance)
    fingerprint, steps, connections = _run_alone(elsewhere, recipe)
    assert (steps, connections) == (13, [])
    assert fingerprint == second.fingerprint != first.fingerprint
    assert weights_digest(elsewhere.weights(fingerprint)) == weights_digest(bench.weights(fingerprint))


def _run_alone(bench: Bench, recipe: dict[str, Any]) -> tuple[str, int, list[str]]:
    """Run in a process of its own; returns the fingerprint, the steps that were done, and the connections made."""
    script = f"""
import json, sys
seen = []
watched = ("socket.connect", "socket.getaddrinfo")
sys.addaudithook(lambda name, args: seen.append((name, str(args))) if name in watched else None)
import kitchen_assets as kitchen
result = kitchen.run("supervised", {dict(SMALL, **recipe)!r}, {bench.resources()!r})
print(json.dumps([result.fingerprint, result.optimizer_steps, seen]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=bench.root.parent
    )
    assert done.returncode == 0, done.stderr[-3000:]
    fingerprint, steps, connections = json.loads(done.stdout.splitlines()[-1])
    return fingerprint, steps, connections


def test_max_steps_ends_inside_an_epoch_and_the_schedule_runs_over_it(bench: Bench) -> None:
    result = bench.run({"epochs": 5, "max_steps": 16})
    assert result.optimizer_steps == 16
    assert [(c["epoch"], c["step"], c["epoch_complete"]) for c in result.checkpoints] == [
        (1, 13, True),
        (2, 16, True),
    ]
    manifest = bench.checkpoints.manifest(bench.checkpoints.head(result.fingerprint).entries()[-1])
    rates = [step.learning_rate for step in bench.checkpoints.steps(manifest)]
    assert rates == [3.0e-3 * ((16 - step) / 16) for step in (13, 14, 15)]
    # The same training said with two epochs less is the same run.
    assert bench.run({"epochs": 2, "max_steps": 16}).fingerprint == result.fingerprint


@pytest.mark.full
def test_the_best_epoch_is_selected_and_training_stops_early_and_a_second_run_honours_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held-out loss goes 3, 1, 2, 2.5 by a planted evaluator: stop after epoch 4 of 6, and take epoch 2."""
    from kitchen_resources.evaluation import local
    from kitchen_resources.evaluation.port import EvaluationResult, Measure

    planted = {1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5}
    asked: list[int] = []

    def evaluate(self: Any, model: Any, tasks: Any) -> EvaluationResult:
        epoch = len(asked) + 1
        asked.append(epoch)
        return EvaluationResult({"held_out/loss": Measure(planted.get(epoch, 9.0), 22, 0.0, 9.0)}, [])

    monkeypatch.setattr(local.LocalEvaluator, "evaluate", evaluate)
    config = {
        "epochs": 6,
        "max_rows": 90,
        "eval_every": 1,
        "select": "best",
        "early_stop_patience": 2,
        "keep_last": 1,
    }
    result = bench.run(config)
    assert result.epochs == 4
    assert result.optimizer_steps == 4 * 6
    head = bench.checkpoints.head(result.fingerprint)
    assert head.end is not None
    assert (head.end.reason, head.end.epoch) == ("early_stop", 4)
    assert [(c["epoch"], c["payload"]) for c in result.checkpoints] == [
        (1, "pruned"),
        (2, "present"),
        (3, "pruned"),
        (4, "present"),
    ]
    assert result.metrics["loss"] == bench.checkpoints.manifest(head.entries()[1]).metrics["loss"]
    again = bench.run(config)
    assert (again.optimizer_steps, again.epochs) == (0, 4)
    # Without the rule the same run goes on where it stopped.
    on = bench.run({**config, "early_stop_patience": None})
    assert (on.fingerprint, on.optimizer_steps, on.epochs) == (result.fingerprint, 2 * 6, 6)


def test_too_little_disk_is_refused_before_the_epoch_with_both_numbers(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalBlobs, "free_bytes", lambda self: 1 << 20)
    with pytest.raises(DiskFull, match=r"1.0 MiB are free, and the next checkpoint needs 4\.\d MiB"):
        bench.run()
    assert bench.checkpoints.find("") == []


def test_bad_trainer_args_are_refused_by_name(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="SFTConfig has no such field\n    write: neftune_noise_alpha: 5"):
        bench.run({"trainer_args": {"neftune_noise_alfa": 5}})
    with pytest.raises(ConfigError, match=r"trainer_args\.learning_rate: is said by another field of the recipe"):
        bench.run({"trainer_args": {"learning_rate": 1}})
    with pytest.raises(ConfigError, match="the kitchen owns the order of rows"):
        bench.run({"trainer_args": {"dataloader_drop_last": True}})


@pytest.mark.full
def test_the_exported_model_has_the_trained_logits_in_a_fresh_process(bench: Bench) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    full = bench.run({"epochs": 1})
    adapted = bench.run({"epochs": 1, "lora": {"rank": 4}, "export": "both"})
    assert full.model_path
    assert adapted.model_path
    ids = list(range(40, 60))
    trained = AutoModelForCausalLM.from_pretrained(bench.weights(full.fingerprint), dtype="float32")
    full_logits, merged_logits = _logits_elsewhere(bench, [full.model_path, adapted.model_path], ids)
    assert full_logits == trained(torch.tensor([ids])).logits.flatten().tolist()

    base = AutoModelForCausalLM.from_pretrained(bench.embedded_model(), dtype="float32")
    trained = PeftModel.from_pretrained(base, bench.weights(adapted.fingerprint))
    expected = trained(torch.tensor([ids])).logits.flatten()
    torch.testing.assert_close(torch.tensor(merged_logits), expected, rtol=1e-4, atol=1e-5)
    adapter = Path(adapted.model_path) / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "embedded:tiny"
    base = AutoModelForCausalLM.from_pretrained(bench.embedded_model(), dtype="float32")
    assert torch.equal(PeftModel.from_pretrained(base, adapter)(torch.tensor([ids])).logits.flatten(), expected)

    exported = kitchen.export("supervised@candidate", bench.folder / "out", blobs=bench.blobs)
    assert weights_digest(exported) == weights_digest(Path(adapted.model_path))
    alone = kitchen.export(
        f"{adapted.fingerprint[:10]}@13", bench.folder / "adapter", merged=False, blobs=bench.blobs
    )
    assert weights_digest(alone) == weights_digest(bench.weights(adapted.fingerprint))
    settings = json.loads((exported / "generation_config.json").read_text())
    assert settings["eos_token_id"] == 258


def _logits_elsewhere(bench: Bench, folders: list[str], ids: list[int]) -> list[list[float]]:
    """What plain transformers computes in a fresh process, for each model."""
    script = f"""
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
logits = []
for folder in {folders!r}:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    assert AutoTokenizer.from_pretrained(folder).chat_template
    logits.append(model(torch.tensor([{ids!r}])).logits.flatten().tolist())
print(json.dumps(logits))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=bench.folder
    )
    assert done.returncode == 0, done.stderr[-3000:]
    values: list[list[float]] = json.loads(done.stdout.splitlines()[-1])
    return values


def test_preflight_says_what_it_will_take(bench: Bench) -> None:
    report = kitchen.validate("supervised", SMALL, bench.resources())
    assert report.backend == "trl"
    assert report.state_bytes == 12 * 115_456
    assert report.lines()[1].startswith("memory about 0.0")
    assert bench.checkpoints.find("") == []
    dry = kitchen.run("supervised", SMALL, bench.resources(), dry_run=True, instance=bench.instance)
    # What is free on the disk changes from one call to the next.
    assert _without_free(list(dry.notes)) == _without_free(report.lines())
    assert dry.optimizer_steps == 0


def _without_free(lines: list[str]) -> list[str]:
    return [re.sub(r"[\d.]+ GiB free", "free", line) for line in lines]
