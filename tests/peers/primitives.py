"""What the tests of clients at a service send: batches, steps, and the same model on this machine."""

import random
from pathlib import Path
from typing import Any

from kitchen_resources.embedded.tokenizer import PAD_ID
from kitchen_resources.training.loops.data import per_token, shifted
from kitchen_resources.training.port import AdamParams, Datum, TrainingClient


def _sequence(generator: random.Random, length: int) -> Datum:
    tokens = [generator.randrange(32, 127) for _ in range(length)]
    return shifted(tokens, [place > 2 for place in range(length)])


def batch(seed: int = 0, rows: int = 4) -> list[Datum]:
    generator = random.Random(seed)
    return per_token([_sequence(generator, generator.randrange(8, 20)) for _ in range(rows)])


def train(client: TrainingClient, steps: int, *, first: int = 0, rate: float = 1.0e-2) -> list[float]:
    """Losses of some steps, each on rows of its own that follow from its number."""
    sent = []
    for step in range(first, first + steps):
        gradients = client.forward_backward(batch(step % 2), "cross_entropy")
        sent.append((gradients, client.optim_step(AdamParams(learning_rate=rate))))
    losses = []
    for gradients, moved in sent:
        losses.append(gradients.result().metrics["loss:sum"])
        moved.result()
    return losses


def local_client(base: Path, adapter: Path | None = None) -> Any:
    """The same model on this machine, with an adapter that was downloaded."""
    from peft import PeftModel

    from kitchen_resources.training.local.client import LocalSettings, LocalTrainingClient
    from tests.tiny_models import load_plain

    model = load_plain(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    return LocalTrainingClient(model, LocalSettings(seed=0, pad_token_id=PAD_ID))
