"""Weights that two processes share (FSDP2): the numbers of copies, whole tensors in a checkpoint, exact resume."""

import json
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.errors import ConfigError
from kitchen_resources.training.resource import TrlBackend
from kitchen_resources.training.trl.backend import TrlTrainer
from kitchen_resources.training.trl.sharding import read_fsdp_config
from tests.training_bench import Bench, Shelf

SHARED = {"batch_size": 1, "gradient_accumulation_steps": 4}
"""Four rows a step, in passes that two processes share."""


def _trained(folder: Path, fsdp: dict[str, Any] | None, **fields: Any) -> tuple[Bench, Shelf]:
    bench = Bench(TrlTrainer(device="cpu", threads=1, processes=2, fsdp=fsdp), folder, SHARED)
    shelf = bench.shelf()
    bench.train(bench.job(**fields), shelf)
    return bench, shelf


@pytest.mark.heavy
@pytest.mark.full
def test_parts_train_as_copies_do(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    _, copies = _trained(tmp_path / "copies", None, checkpoint_steps=2)
    bench, parts = _trained(tmp_path / "parts", {"version": 2}, checkpoint_steps=2)
    assert len(parts.steps) == len(copies.steps) == 6
    for ours, theirs in zip(parts.steps, copies.steps, strict=True):
        assert (ours.global_step, ours.tokens) == (theirs.global_step, theirs.tokens)
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-4)
    assert {n: d.row_ids for n, d in parts.drafts.items()} == {n: d.row_ids for n, d in copies.drafts.items()}
    # The files are those of copies, tensor by tensor: whole, and as near as the losses.
    for step, checkpoint in parts.checkpoints.items():
        other = copies.checkpoints[step].folder
        files = sorted(path.name for path in checkpoint.folder.glob("*.safetensors"))
        assert files == sorted(path.name for path in other.glob("*.safetensors"))
        for name in files:
            found, expected = load_file(checkpoint.folder / name), load_file(other / name)
            assert found.keys() == expected.keys()
            for key in found:
                assert found[key].shape == expected[key].shape, key
                if not name.startswith("rng"):
                    assert abs(found[key] - expected[key]).max() < 1e-4, (name, key)
    _go_on(bench, parts)


@pytest.mark.heavy
@pytest.mark.full
def test_an_adapter_in_parts_resumes_exactly(tmp_path: Path) -> None:
    lora = {"rank": 4, "dropout": 0.1}
    bench, parts = _trained(tmp_path / "parts", {"version": 2}, lora=lora, checkpoint_steps=2)
    assert parts.steps[-1].loss < parts.steps[0].loss
    _go_on(bench, parts, lora=lora)


def _go_on(bench: Bench, parts: Shelf, **fields: Any) -> None:
    """Other processes go on from inside the first epoch, and from its end."""
    shelf = bench.shelf()
    shelf.drafts.update(parts.drafts)
    session = bench.trainer.open(bench.job(**fields))
    try:
        for step, epoch in ((2, 1), (3, 2)):
            shelf.parent = step
            session.train_epoch(epoch, parts.checkpoints[step], shelf)
    finally:
        session.close()
    assert [s.loss for s in shelf.steps] == [s.loss for s in parts.steps[2:]]
    assert shelf.digests() == {end: parts.digests()[end] for end in (3, 6)}


def test_the_file_is_one_of_transformers_or_of_accelerate(tmp_path: Path) -> None:
    path = tmp_path / "fsdp.json"
    path.write_text(json.dumps({"fsdp_reshard_after_forward": False, "min_num_params": 10}))
    assert read_fsdp_config(path) == {"version": 2, "reshard_after_forward": False, "min_num_params": 10}
    path.write_text("{}")
    assert read_fsdp_config(path) == {"version": 2}
    path.write_text("distributed_type: FSDP\nfsdp_config: {fsdp_version: 2, fsdp_cpu_ram_efficient_loading: false}\n")
    assert read_fsdp_config(path) == {"version": 2, "cpu_ram_efficient_loading": False}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[1]", "holds no settings of FSDP"),
        ("{", "can't be read"),
        ("distributed_type: MULTI_GPU", "holds no settings"),
        ("zero_optimization: {stage: 3}", "config of DeepSpeed"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 3}", "config of DeepSpeed"),
        ("version: 1", "first version of FSDP"),
        ("xla: true", "XLA"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "fsdp.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told) as refused:
        TrlBackend(processes=2, fsdp=str(path)).adapter()
    assert str(path) in str(refused.value)


def test_one_process_has_nobody_to_share_with_and_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one process to share with"):
        TrlBackend(fsdp="fsdp.json").adapter()
    with pytest.raises(ConfigError, match="can't be read"):
        TrlBackend(processes=2, fsdp=str(tmp_path / "none.json")).adapter()


def test_what_the_file_says_is_part_of_what_is_trained(tmp_path: Path) -> None:
    copies, parts, others = (
        Bench(TrlTrainer(device="cpu", threads=1, processes=2, fsdp=fsdp), tmp_path / str(index), SHARED).job()
        for index, fsdp in enumerate([None, {"version": 2}, {"version": 2, "reshard_after_forward": False}])
    )
    assert "fsdp" not in copies.resolution.values
    assert parts.resolution.values["fsdp"] != others.resolution.values["fsdp"]
