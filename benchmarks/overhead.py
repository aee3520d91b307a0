"""What training by the kitchen costs over a plain TRL script: per optimiser step, and between two epochs.

    python benchmarks/overhead.py [--rounds 5]      # exits 1 when a bound is exceeded, or the two didn't do the same
    BENCH_DEVICE=cuda python benchmarks/overhead.py   # the same on a GPU, with a model whose step takes as long there

Two processes train the same model on the same prepared rows with the same arguments, in turns of one step: plain,
kitchen, plain, kitchen. So whatever else the machine does meets both, and each of the kitchen's steps is compared with
the plain step on the same rows just before it. A round is a new pair of processes. In the end both must hold the same
weights, bit by bit.

A step is all that happens from one step's end to the next: loading rows, forward, backward, optimiser, logging,
callbacks, telemetry. The first step of an epoch belongs to what lies between the epochs: there the kitchen builds a
new trainer from the published checkpoint, and the plain script only saves, with fsync.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.comparison import Measure, Spread, main, measure, paired_ratios, spread, steps_until_within
from benchmarks.turns import StepTime

DEVICE = os.environ.get("BENCH_DEVICE", "cpu")
ON_GPU = DEVICE != "cpu"

ROUNDS = 5
EPOCHS, STEPS_PER_EPOCH, BATCH_SIZE = 3, 16, 64 if ON_GPU else 8
EPOCHS_OF_DAGSTER = (2, 12)
MODEL: Mapping[str, Any] = (
    {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 64,
    }
    if ON_GPU
    else {
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 48,
    }
)
RECIPE: Mapping[str, Any] = {
    "held_out": "0",
    "max_length": 128,
    "epochs": EPOCHS,
    "batch_size": BATCH_SIZE,
    "learning_rate": 1.0e-3,
    "precision": "fp32",
    "deterministic": ON_GPU,
    "eval_every": 0,
}
PLAIN: Mapping[str, Any] = {
    "num_train_epochs": EPOCHS,
    "per_device_train_batch_size": BATCH_SIZE,
    "learning_rate": 1.0e-3,
    "lr_scheduler_type": "linear",
    "optim": "adamw_torch",
    "weight_decay": 0.0,
    "seed": 0,
    "data_seed": 0,
    "full_determinism": ON_GPU,
}
SAME_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}
"""Of both processes. Most of it the kitchen sets itself; the plain script gets it too, so that only code is compared."""
SHARE = 0.05
WAYS = {"live": 1, "new process": 2}
"""How the kitchen goes on, and after which epoch."""


@dataclass(frozen=True)
class Side:
    """What one process of a round measured.

    Attributes:
        steps: Of all epochs, in order.
        state_bytes: Size of the last checkpoint.
        weights: Folder of the weights at the end.
        between: Of the kitchen: for each way to go on, seconds and bytes by what they went to.
    """

    steps: Sequence[StepTime]
    state_bytes: int
    weights: Path
    between: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """A pair of processes."""

    plain: Side
    kitchen: Side


# What the numbers come to.


def steady(steps: Sequence[StepTime]) -> list[StepTime]:
    """The steps that have only a step in them: all but the first two of each epoch."""
    epochs = sorted({step.epoch for step in steps})
    return [step for epoch in epochs for step in [s for s in steps if s.epoch == epoch][2:]]


def step_seconds(side: Side) -> float:
    """The median steady step."""
    return statistics.median(step.seconds for step in steady(side.steps))


def between_seconds(side: Side, epoch: int) -> float:
    """Seconds between an epoch's last step and the next epoch's first, which follows without a wait."""
    first = next(step for step in side.steps if step.epoch == epoch + 1)
    return first.seconds - step_seconds(side)


def step_ratio(one: Round) -> float:
    """The kitchen's step over the plain step before it: median over a round's steady steps."""
    kitchen, plain = steady(one.kitchen.steps), steady(one.plain.steps)
    return statistics.median(paired_ratios([step.seconds for step in kitchen], [step.seconds for step in plain]))


def cpu_ratio(one: Round) -> float:
    """CPU seconds of all the kitchen's steady steps over those of the plain ones, what comes rarely included."""
    kitchen, plain = (sum(step.cpu for step in steady(side.steps)) for side in (one.kitchen, one.plain))
    return kitchen / plain


def noise(rounds: Sequence[Round]) -> Spread:
    """A plain step over the plain step before it: what the same work differs by on this machine today."""
    ratios = []
    for one in rounds:
        seconds = [step.seconds for step in steady(one.plain.steps)]
        ratios += paired_ratios(seconds[1:], seconds[:-1])
    return spread(ratios)


def measures_of(rounds: Sequence[Round], dagster_seconds: float) -> list[Measure]:
    """All that is said of the rounds."""
    plain_step = measure("plain step", [step_seconds(one.plain) for one in rounds], "s")
    ratio = measure("step_ratio", [step_ratio(one) for one in rounds], note="kitchen over plain, by the clock")
    plain_between = measure(
        "plain, between epochs",
        [between_seconds(one.plain, epoch) for one in rounds for epoch in WAYS.values()],
        "s",
        "save, fsync, next epoch's loader",
    )
    found = [plain_step, ratio, measure("step_cpu_ratio", [cpu_ratio(one) for one in rounds], note="by CPU seconds")]
    same = noise(rounds)
    found += [Measure("plain step over itself", same.median, "", same.low, same.high, "the machine's noise")]
    found += [plain_between]
    for way, epoch in WAYS.items():
        name = f"between_epochs_{way.replace(' ', '_')}"
        found += [measure(name, [between_seconds(one.kitchen, epoch) for one in rounds], "s")]
        found += _parts(rounds, way)
    found += [
        measure("state_bytes_ratio", [one.kitchen.state_bytes / one.plain.state_bytes for one in rounds]),
        Measure("dagster_epoch", dagster_seconds, "s", note="an epoch that trains nothing, through Dagster"),
    ]
    live = next(item for item in found if item.name == "between_epochs_live")
    steps = steps_until_within(
        SHARE,
        step=plain_step.value,
        ratio=ratio.value,
        fixed=live.value + dagster_seconds,
        plain_fixed=plain_between.value,
    )
    note = f"seconds of an epoch from which on all of it is under {SHARE:.0%}: {steps:g} steps"
    return [*found, Measure("epoch_within_share", steps * plain_step.value, "s", note=note)]


def _parts(rounds: Sequence[Round], way: str) -> list[Measure]:
    """Where the seconds and bytes of one epoch went that no step has; what is left out is the first step's warm-up."""
    found = []
    between = [one.kitchen.between[way] for one in rounds]
    for part in dict.fromkeys(part for one in between for kind in one.values() for part in kind):
        seconds = [one["seconds"].get(part, 0.0) for one in between]
        size = statistics.median(one["bytes"].get(part, 0.0) for one in between)
        found.append(measure(f"  {part}", seconds, "s", f"{size / 2**20:.1f} MiB" if size else ""))
    return found


# Running the rounds.


def run_rounds(folder: Path, rounds: int) -> list[Round]:
    """Train in pairs of processes.

    Raises:
        SystemExit: A process failed, or the two sides of a round have other weights.
    """
    model, rows = _write_model(folder / "model"), _write_rows(folder / "rows.jsonl")
    recipe = {**RECIPE, "model": str(model), "dataset": str(rows)}
    parquet = _prepare(recipe, folder)
    done = []
    for number in range(rounds):
        one = _run_pair(folder / f"round-{number}", recipe, str(model), parquet)
        if not same_weights(one.kitchen.weights, one.plain.weights):
            raise SystemExit("the kitchen's weights aren't those of the plain script: not the same work was compared")
        done.append(one)
        print(
            f"round {number + 1} of {rounds}: step ratio {step_ratio(one):.3f}, CPU {cpu_ratio(one):.3f}", flush=True
        )
    return done


def _write_model(folder: Path) -> Path:
    """A Qwen3 with seeded random weights and the embedded tokenizer, whose step takes over 100 ms on one core."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config
    from transformers.utils import logging

    from kitchen_resources.embedded.tokenizer import PAD_ID, TURN_END_ID, VOCAB_SIZE, tokenizer_files

    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        pad_token_id=PAD_ID,
        eos_token_id=TURN_END_ID,
        bos_token_id=None,
        tie_word_embeddings=False,
        **MODEL,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    for name, data in tokenizer_files().items():
        (folder / name).write_bytes(data)
    return folder


def _write_rows(path: Path) -> Path:
    """Conversations of 128 tokens each."""
    with path.open("w", encoding="utf-8") as stream:
        for i in range(STEPS_PER_EPOCH * BATCH_SIZE):
            turns = [("user", f"{i:049d}"), ("assistant", f"{7919 * i:049d}")]
            messages = [{"role": role, "content": content} for role, content in turns]
            stream.write(json.dumps({"messages": messages}) + "\n")
    return path


def _prepare(recipe: Mapping[str, Any], folder: Path) -> Path:
    from benchmarks.kitchen_training import bound, new_process

    with new_process(bound(recipe), folder, "prepare") as run:
        return run.job().data.path


def _run_pair(folder: Path, recipe: Mapping[str, Any], model: str, parquet: Path) -> Round:
    """Both sides at once, each waiting while the other works."""
    to_plain, to_kitchen = os.pipe(), os.pipe()
    sides: dict[str, dict[str, Any]] = {
        "plain": {
            "receive": to_plain[0],
            "send": to_kitchen[1],
            "model": model,
            "parquet": str(parquet),
            "sft": PLAIN,
        },
        "kitchen": {"receive": to_kitchen[0], "send": to_plain[1], "recipe": recipe},
    }
    with ExitStack() as stack:
        running = {side: stack.enter_context(_start(side, folder / side, given)) for side, given in sides.items()}
        # A side that reads from a pipe is to see its end when the other side is gone.
        for descriptor in (*to_plain, *to_kitchen):
            os.close(descriptor)
        codes = {side: process.wait() for side, process in running.items()}
    logs = {side: (folder / side / "log.txt").read_text(encoding="utf-8") for side in sides}
    # When one fails the other does too, for want of a partner.
    said = [f"{side} ended with {code}:\n{logs[side][-3000:]}" for side, code in codes.items() if code]
    if said:
        raise SystemExit("\n".join(said))
    return Round(*(_read_side(folder / side / "result.json") for side in sides))


def _start(side: str, folder: Path, given: Mapping[str, Any]) -> "subprocess.Popen[bytes]":
    """One side's process, in a folder of its own."""
    folder.mkdir(parents=True)
    arguments = {
        **given,
        "folder": str(folder),
        "result": str(folder / "result.json"),
        "first": side == "plain",
        "steps_per_epoch": STEPS_PER_EPOCH,
    }
    (folder / "arguments.json").write_text(json.dumps(arguments), encoding="utf-8")
    with (folder / "log.txt").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{side}_training", str(folder / "arguments.json")],
            cwd=Path(__file__).parent.parent,
            stdout=log,
            stderr=log,
            pass_fds=(given["receive"], given["send"]),
            env={**os.environ, **SAME_ENVIRONMENT},
        )


def _read_side(path: Path) -> Side:
    value = json.loads(path.read_text(encoding="utf-8"))
    steps = [StepTime(*step) for step in value["steps"]]
    if len(steps) != EPOCHS * STEPS_PER_EPOCH:
        raise SystemExit(f"{path.name}: {len(steps)} steps of {EPOCHS * STEPS_PER_EPOCH}")
    return Side(steps, value["state_bytes"], Path(value["weights"]), value.get("between", {}))


def same_weights(one: Path, other: Path) -> bool:
    """Whether two folders hold the same tensors: names, types, shapes, bits."""
    tensors = [_tensors(folder) for folder in (one, other)]
    if tensors[0].keys() != tensors[1].keys():
        return False
    pairs = [(array, tensors[1][name]) for name, array in tensors[0].items()]
    return all((a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()) for a, b in pairs)


def _tensors(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    found = {name: array for path in folder.glob("model*.safetensors") for name, array in load_file(path).items()}
    if not found:
        raise SystemExit(f"{folder} holds no weights")
    return found


def dagster_seconds(folder: Path, rows: Path) -> float:
    """Seconds of an epoch through Dagster in which nothing is trained: more epochs less fewer, over their difference."""
    few, many = EPOCHS_OF_DAGSTER
    return (_noop_run(folder, rows, many) - _noop_run(folder, rows, few)) / (many - few)


def _noop_run(folder: Path, rows: Path, epochs: int) -> float:
    import dagster as dg

    import kitchen_assets as kitchen

    place = folder / f"dagster-{epochs}"
    place.mkdir()
    resources = {
        "blobs": {"store": {"local": {"path": str(place / "store")}}},
        "trainer": {"backend": {"noop": {}}},
        "telemetry": {"console": False},
    }
    config = {**RECIPE, "model": "embedded:tiny", "dataset": str(rows), "epochs": epochs, "evaluations": []}
    with dg.DagsterInstance.local_temp(str(place)) as instance:
        return kitchen.run("supervised", config, resources, instance=instance).duration_s


def measures(rounds: int = ROUNDS) -> list[Measure]:
    """Run all of it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        done = run_rounds(folder, rounds)
        return measures_of(done, dagster_seconds(folder, folder / "rows.jsonl"))


if __name__ == "__main__":
    sys.exit(main(measures))
