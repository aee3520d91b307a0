"""Environments and rewards that fail while a model is trained: what is counted, what goes on, and when it stops."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.checkpoints.head import CheckpointEntry
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.errors import EpisodesFailed
from kitchen_resources.formulas.advantages import group_centered
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.training.trl import reinforcement
from tests import stumbling
from tests.faults.trl_kills import REINFORCEMENT, train

pytestmark = [pytest.mark.heavy, pytest.mark.full]

EPISODES = 16
"""Of an epoch: two draws of two problems, four of each."""

SMALL: Mapping[str, Any] = {
    **REINFORCEMENT,
    "held_out": "0",
    "epochs": 1,
    "steps_per_epoch": 2,
    "groups_per_batch": 2,
    "group_size": 4,
    "batch_size": 8,
}


def playing(how: str = "", *, max_failed: float = 0.25, time_limit_s: float = 30.0, **args: Any) -> dict[str, Any]:
    """The field `environment` of a recipe."""
    stumbling.register()
    limits = {"max_failed": max_failed, "time_limit_s": time_limit_s, "workers": 2}
    return {"name": "stumble", "args": {"how": how, **args}, **limits}


def run(root: Path, say: Callable[[str], None] = lambda text: None, **fields: Any) -> None:
    train(root, ReinforcementRecipe, {**SMALL, **fields})(say)


def made(root: Path) -> tuple[CheckpointStore, list[CheckpointEntry]]:
    """The store, and the checkpoints of its only run."""
    store = CheckpointStore(LocalBlobs(root))
    (fingerprint,) = store.find("")
    return store, list(store.head(fingerprint).entries())


def measured(root: Path, name: str) -> tuple[list[float], float]:
    """A number of the only epoch: of each step, and of the epoch."""
    store, (entry,) = made(root)
    manifest = store.manifest(entry)
    return [step.extra[name] for step in store.steps(manifest)], manifest.metrics[name]


def transcript(root: Path) -> list[dict[str, Any]]:
    store, (entry,) = made(root)
    return store.transcript(store.manifest(entry))


def test_an_episode_that_raises_has_no_reward_and_nothing_else_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[float | None], list[float]]] = []
    trainer = reinforcement.trainer_class(ReinforcementRecipe())
    real = trainer._generate_and_score_completions

    def spied(self: Any, inputs: Any) -> Any:
        output = real(self, inputs)
        seen.append((list(self._logs["rewards"]["_episode_reward"])[-8:], output["advantages"].tolist()))
        return output

    monkeypatch.setattr(trainer, "_generate_and_score_completions", spied)
    run(tmp_path, environment=playing("raise"))
    assert measured(tmp_path, "failed_episodes") == ([2.0, 2.0], 2.0)
    # Three turns of those that got to the end; the reward is the mean of theirs.
    assert measured(tmp_path, "turns")[0] == [3.0, 3.0]
    for rewards, advantages in seen:
        for start in (0, 4):
            failed, *others = rewards[start : start + 4]
            assert failed is None or failed != failed
            expected = [0.0, *group_centered([float(reward or 0) for reward in others])]
            assert advantages[start : start + 4] == pytest.approx(expected, abs=1e-6)

    lines = transcript(tmp_path)
    failures = [line for line in lines if line["failure"]]
    assert (len(lines), len(failures)) == (EPISODES, 4)
    assert {(line["sample"], line["reward"], line["solved"]) for line in failures} == {(0, None, False)}
    assert all(
        line["failure"].startswith("error: LookupError: lost the thread (stumbling.py, line ") for line in failures
    )
    # What it wrote before stays on record.
    assert all(len(line["turns"]) == 3 for line in lines)
    assert all(line["reward"] == sum(line["rewards"].values()) for line in lines if not line["failure"])


def test_an_episode_that_hangs_costs_its_time_limit_and_no_more(tmp_path: Path) -> None:
    run(tmp_path / "hang", environment=playing("hang", time_limit_s=0.5))
    assert measured(tmp_path / "hang", "failed_episodes") == ([2.0, 2.0], 2.0)
    lines = transcript(tmp_path / "hang")
    failures = [line["failure"] for line in lines if line["failure"]]
    assert len(failures) == 4
    assert all(failure.startswith("timeout: ") and "0.5 s" in failure for failure in failures)
    # The others of its worker play on as if nothing had been: by their actions, on a new one.
    run(tmp_path / "raise", environment=playing("raise", time_limit_s=0.5))
    others = [line for line in transcript(tmp_path / "raise") if not line["failure"]]
    assert [line for line in lines if not line["failure"]] == others


def test_a_reward_that_is_no_number_fails_its_episodes(tmp_path: Path) -> None:
    environment = playing()
    run(tmp_path, environment=environment, rewards=[{"name": "void", "weight": 2.0}])
    # Each of the four problems comes up once, and the reward is none for one of them.
    steps, mean = measured(tmp_path, "failed_episodes")
    assert (sorted(steps), mean) == ([0.0, 4.0], 2.0)
    failures = [line for line in transcript(tmp_path) if line["failure"]]
    assert len({line["group"] for line in failures}) == 1
    assert [line["sample"] for line in failures] == [0, 1, 2, 3]
    assert {line["failure"] for line in failures} == {"not_finite: void: the reward is nan"}
    assert all("write 0" in line["prompt"] for line in failures)


def test_an_epoch_of_nothing_but_failures_moves_nothing(tmp_path: Path) -> None:
    from plain import weights_digest

    run(tmp_path, environment=playing("raise", max_failed=1.0, all_of_them=True))
    assert measured(tmp_path, "failed_episodes") == ([8.0, 8.0], 8.0)
    store, (entry,) = made(tmp_path)
    steps = store.steps(store.manifest(entry))
    assert [(step.loss, step.grad_norm) for step in steps] == [(0.0, 0.0)] * 2
    assert not {"reward", "solved", "turns"} & set(steps[0].extra)
    (folder,) = (LocalBlobs(tmp_path).scratch() / "cache" / "models").glob("embedded-tiny-*")
    trained = store.checkout(store.find("")[0], entry, tmp_path / "weights").folder
    assert weights_digest(trained) == weights_digest(folder)


def test_more_failures_than_allowed_stop_the_run_at_once_and_publish_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(EpisodesFailed) as stopped:
        run(tmp_path, said.append, environment=playing("raise", max_failed=0.1))
    text = str(stopped.value)
    assert text.startswith(
        "environment stumble, epoch 1: 2 of the 16 episodes of an epoch have failed, and max_failed is 0.1; "
        "the last with error: LookupError: lost the thread"
    )
    assert text.endswith("\n  fix: correct the environment or its time_limit_s; nothing of this epoch was published")
    assert [line for line in said if line.startswith(("step", "published"))] == []
    assert made(tmp_path)[1] == []
    assert not stopped.value.mendable


def test_of_the_epochs_before_everything_stays(tmp_path: Path) -> None:
    flag, said = tmp_path / "from-now-on", []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("published"):
            flag.touch()

    fields = {"epochs": 2, "environment": playing("raise", max_failed=0.2, all_of_them=True, once=str(flag))}
    with pytest.raises(EpisodesFailed, match=r"epoch 2: 8 of the 16 episodes"):
        run(tmp_path / "store", say, **fields)
    _, entries = made(tmp_path / "store")
    assert [(entry.epoch, entry.epoch_complete) for entry in entries] == [(1, True)]
    assert [line for line in said if line.startswith("step")] == ["step 1 1", "step 1 2"]
    flag.unlink()
    # Mended, it goes on from there.
    run(tmp_path / "store", said.append, **fields)
    assert [entry.epoch for entry in made(tmp_path / "store")[1] if entry.epoch_complete] == [1, 2]


def test_the_same_episodes_fail_whatever_the_number_of_workers(tmp_path: Path) -> None:
    played = {}
    for workers in (1, 3):
        environment = {**playing("raise"), "workers": workers}
        run(tmp_path / str(workers), environment=environment)
        played[workers] = json.dumps(transcript(tmp_path / str(workers)))
    assert played[1] == played[3]
