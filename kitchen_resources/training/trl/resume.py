"""From a checkpoint to the files that transformers' Trainer resumes from.

They are written afresh into scratch, from values that were verified, and the Trainer reads only what this process wrote.
"""

from pathlib import Path

from kitchen_resources.training.port import LocalCheckpoint
from kitchen_resources.training.pytorch.state import SCHEDULE, is_training_state, read_json, read_optimizer, read_rng
from kitchen_resources.training.trl.processes import rank, world_size


def write_resume_folder(checkpoint: LocalCheckpoint, target: Path, *, batch_size: int) -> Path:
    """A folder that `Trainer.train(resume_from_checkpoint=…)` goes on from.

    Args:
        checkpoint: The verified checkpoint.
        target: Folder to make.
        batch_size: Rows in one forward pass, which the Trainer compares with its own.
    """
    import torch
    from transformers.trainer_callback import TrainerState

    target.mkdir(parents=True)
    for path in checkpoint.folder.iterdir():
        if not is_training_state(path.name):
            (target / path.name).symlink_to(path.resolve())
    torch.save(read_optimizer(checkpoint.folder), target / "optimizer.pt")
    torch.save(read_json(checkpoint.folder / SCHEDULE), target / "scheduler.pt")
    # Each of several processes goes on with its own random numbers, and looks for them under its own name.
    name = f"rng_state_{rank()}.pth" if world_size() > 1 else "rng_state.pth"
    torch.save(read_rng(checkpoint.folder, rank()), target / name)
    # The Trainer takes its logging interval from the state that it loads, not from its arguments.
    state = TrainerState(global_step=checkpoint.global_step, train_batch_size=batch_size, logging_steps=1)
    state.save_to_json(str(target / "trainer_state.json"))
    return target
