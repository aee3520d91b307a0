"""What a step by primitives costs, over the same step of SFTTrainer and of a bare torch loop.

    python benchmarks/primitives.py [--rounds 5]      # exits 1 when a bound is exceeded, or the sides' losses differ
    BENCH_DEVICE=cuda python benchmarks/primitives.py   # the same on a GPU

One process trains the same model on the same rows in the same order three ways, a dozen steps each, round after round:
SFTTrainer as a plain script uses it, the kitchen's own loop on a `local` client, and a loop in torch that does nothing
but forward, backward and step. A round's ratio is that of its median steps.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.comparison import Measure, main, measure
from benchmarks.overhead import BATCH_SIZE, DEVICE, ON_GPU, PLAIN, RECIPE, _prepare, _write_model, _write_rows

ROUNDS = 5
STEPS = 12
STEADY = 2
"""The first steps of a side, which aren't counted."""

SHARED = {
    "per_device_train_batch_size",
    "learning_rate",
    "lr_scheduler_type",
    "optim",
    "weight_decay",
    "seed",
    "data_seed",
}
"""Of the plain script's arguments; nobody's bits are compared here."""

SAME_LOSS = 1.0e-3 if ON_GPU else 1.0e-4


def measures(rounds: int = ROUNDS) -> list[Measure]:
    """Run all of it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model, rows = _write_model(folder / "model"), _write_rows(folder / "rows.jsonl")
        parquet = _prepare({**RECIPE, "model": str(model), "dataset": str(rows)}, folder)
        return measures_of(compare(model, parquet, folder, rounds))


def compare(model: Path, parquet: Path, folder: Path, rounds: int) -> dict[str, list[float]]:
    """The seconds of each side's median step, a round.

    Raises:
        SystemExit: The sides' losses differ, so that not the same work was compared.
    """
    import torch

    torch.set_num_threads(1)
    steps: dict[str, list[float]] = {"sft": [], "local": [], "bare": []}
    for number in range(rounds):
        sides: Mapping[str, Callable[[], Iterator[tuple[float, float]]]] = {
            "sft": lambda: _sft(model, parquet, folder / f"sft-{number}"),  # noqa: B023  (used up in this round)
            "local": lambda: _local(model, parquet),
            "bare": lambda: _bare(model, parquet),
        }
        losses = {}
        for name, side in sides.items():
            found = list(side())
            steps[name].append(statistics.median(seconds for seconds, _ in found[STEADY:]))
            losses[name] = [loss for _, loss in found]
        for name in ("local", "bare"):
            furthest = max(abs(a - b) for a, b in zip(losses[name], losses["sft"], strict=True))
            if not furthest <= SAME_LOSS:
                raise SystemExit(f"the losses of {name} differ from SFTTrainer's by up to {furthest:g}")
        print(f"round {number + 1} of {rounds}: " + ", ".join(f"{k} {v[-1]:.3f} s" for k, v in steps.items()))
    return steps


def measures_of(steps: Mapping[str, list[float]]) -> list[Measure]:
    """The measures, from each side's median step of every round."""
    over = {name: [a / b for a, b in zip(steps["local"], steps[name], strict=True)] for name in ("sft", "bare")}
    return [
        *(measure(f"{name} step", values, "s") for name, values in steps.items()),
        measure("local_over_sft", over["sft"], note="a step by primitives over one of SFTTrainer"),
        measure("local_over_bare", over["bare"], note="over one of a bare torch loop"),
    ]


def _sft(model: Path, parquet: Path, folder: Path) -> Iterator[tuple[float, float]]:
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    ended, losses = [], []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            ended.append(time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ended.append(time.perf_counter())

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                losses.append(float(logs["loss"]))

    trainer = SFTTrainer(
        model=str(model),
        args=SFTConfig(
            output_dir=str(folder),
            use_cpu=not ON_GPU,
            bf16=False,
            activation_checkpointing=False,
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            max_length=None,
            max_steps=STEPS,
            dataset_kwargs={"skip_prepare_dataset": True},
            **{name: value for name, value in PLAIN.items() if name in SHARED},
        ),
        train_dataset=Dataset.from_parquet(str(parquet), cache_dir=str(folder / "cache")),
        callbacks=[Watch()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    for before, after, loss in zip(ended, ended[1:], losses, strict=False):
        yield after - before, loss


def _batches(parquet: Path) -> Iterator[list[dict[str, Any]]]:
    """The rows of each step, in TRL's order."""
    import pyarrow.parquet

    from kitchen_resources.formulas.batches import batch_plan

    table = pyarrow.parquet.read_table(parquet)
    plan = batch_plan(table.num_rows, seed=0, epoch=0, batch_size=PLAIN["per_device_train_batch_size"])
    for indices in plan[:STEPS]:
        yield table.take(indices).to_pylist()


def _rate(step: int) -> float:
    """SFTTrainer's linear schedule, without warm-up."""
    return float(PLAIN["learning_rate"]) * (STEPS - step) / STEPS


def _local(model: Path, parquet: Path) -> Iterator[tuple[float, float]]:
    from kitchen_resources.embedded.tokenizer import PAD_ID
    from kitchen_resources.training.local.client import LocalSettings
    from kitchen_resources.training.local.opening import open_client
    from kitchen_resources.training.loops.data import labelled, per_token
    from kitchen_resources.training.port import AdamParams

    client = open_client(model, LocalSettings(seed=0, pad_token_id=PAD_ID, rows_at_a_time=BATCH_SIZE), device=DEVICE)
    before = time.perf_counter()
    for step, rows in enumerate(_batches(parquet)):
        data = per_token([datum for row in rows for datum in labelled(row)])
        gradients = client.forward_backward(data, "cross_entropy")
        moved = client.optim_step(AdamParams(learning_rate=_rate(step), grad_clip_norm=1.0))
        loss = gradients.result().metrics["loss:sum"]
        moved.result()
        after = time.perf_counter()
        yield after - before, loss
        before = time.perf_counter()
    client.close()


def _bare(model: Path, parquet: Path) -> Iterator[tuple[float, float]]:
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).to(DEVICE).train()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.0)
    before = time.perf_counter()
    for step, rows in enumerate(_batches(parquet)):
        # All rows are of one length: no filler.
        tokens = torch.tensor([row["input_ids"] for row in rows], device=DEVICE)
        labels = torch.tensor([row["labels"] for row in rows], device=DEVICE)
        logits = network(input_ids=tokens).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = _rate(step)
        optimizer.step()
        optimizer.zero_grad()
        value = float(loss.detach())
        after = time.perf_counter()
        yield after - before, value
        before = time.perf_counter()


if __name__ == "__main__":
    sys.exit(main(measures))
