"""Registrations for tests of the registry: one that is whole, with fields replaced."""

from dataclasses import replace
from typing import Any

from kitchen_resources.blobs.content import StoredFile
from kitchen_resources.registry.port import ModelFiles, Registration

RUN_A, RUN_B = "a" * 64, "b" * 64


def model_files(digest: str = "m" * 64, **files: int) -> ModelFiles:
    sizes = files or {"config.json": 100, "model.safetensors": 4000}
    stored = {name: StoredFile(f"{index:064x}", size) for index, (name, size) in enumerate(sizes.items())}
    return ModelFiles(files=stored, kind="merged", digest=digest)


def measured(value: float, n: int = 50) -> dict[str, Any]:
    return {"value": value, "n": n, "low": None, "high": value + 0.5}


def registration(**changes: Any) -> Registration:
    """A version of the model `words`, whole as it comes from a run."""
    whole = Registration(
        name="words",
        fingerprint=RUN_A,
        step=34,
        epoch=2,
        state_digest="5" * 64,
        manifest="e" * 64,
        model=model_files(),
        base={"reference": "org/base@main", "digest": "d" * 64, "revision": "0123abc"},
        dataset={"digest": "1" * 64, "held_out_digest": None, "key": "2" * 64, "raw": {"train": {"kind": "file"}}},
        metrics={"held_out/loss": measured(0.5)},
        base_metrics={"held_out/loss": measured(5.0)},
        cost={"optimizer_steps": 34.0, "tokens": 1000.0, "seconds": 1.5},
        identity={"version": 1, "method": "supervised", "plan": {"total_steps": 34}, "layers": [1, 2]},
        environment={"torch": "2.13.0", "threads": 1},
        launch="run-1",
        simulated=False,
    )
    return replace(whole, **changes)
