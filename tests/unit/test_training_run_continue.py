"""`continue_from`: which checkpoint it names, what is trained from there, and what can't be gone on from."""

from typing import Any

import pytest

from kitchen_resources.checkpoints.head import CheckpointEntry, Head, head_key
from kitchen_resources.checkpoints.lease import acquire
from kitchen_resources.datasets.sources import NoopDatasets
from kitchen_resources.errors import CheckpointError, ConfigError
from tests.engine import ROWS, Engine, HookedTrainer, Planted, failing_at, states
from tests.faulty_blobs import FaultyBlobs


@pytest.fixture
def engine() -> Engine:
    """A store in which a run of three epochs is finished."""
    engine = Engine()
    engine.finish(keep_last=3)
    return engine


def rows_of(engine: Engine, head: Head, step: int) -> list[list[int]]:
    entry = head.at(step)
    assert entry is not None
    return engine.store.ledger(engine.store.manifest(entry))


def first_of(head: Head) -> CheckpointEntry:
    return head.entries()[0]


def watched(engine: Engine) -> tuple[Engine, list[int]]:
    """The same engine, and the steps that it reaches from now on."""
    reached: list[int] = []
    return engine.with_(adapter=HookedTrainer(reached.append)), reached


# Going on


def test_two_more_epochs_at_another_learning_rate(engine: Engine) -> None:
    old = engine.head()
    other, reached = watched(engine)
    finished = other.finish(continue_from=old.fingerprint[:12], epochs=5, learning_rate=0.5, keep_last=9)
    assert finished.head.fingerprint != old.fingerprint
    assert reached == list(range(10, 16))
    assert finished.steps_done == 6
    assert [(e.step, e.epoch) for e in finished.head.entries()] == [(12, 4), (15, 5)]
    manifest = engine.store.manifest(first_of(finished.head))
    assert manifest.parent == states(old)[9]
    assert manifest.identity["start"] == {"state": states(old)[9], "carry": "all", "step": 9}
    # The new rate, over the new total of steps: step 10 of 15 under the linear schedule.
    assert engine.store.steps(manifest)[0].learning_rate == pytest.approx(0.5 * (1 - 9 / 15))
    # What was continued is as it was.
    assert engine.store.head(old.fingerprint) == old


def test_the_same_continuation_again_does_nothing(engine: Engine) -> None:
    prefix = engine.head().fingerprint[:12]
    fields: dict[str, Any] = {"continue_from": prefix, "epochs": 5}
    assert engine.finish(**fields).steps_done == 6
    run = engine.run(**fields)
    assert run.planned().missing == ()
    assert run.finish().steps_done == 0


def test_a_named_step_is_gone_on_from(engine: Engine) -> None:
    old = engine.head()
    other, reached = watched(engine)
    finished = other.finish(continue_from=f"{old.fingerprint[:12]}@6", learning_rate=0.5)
    assert reached == [7, 8, 9]
    assert engine.store.manifest(first_of(finished.head)).parent == states(old)[6]
    assert other.run(continue_from=f"{old.fingerprint[:12]}@6", learning_rate=0.5).planned().missing == ()


def test_with_weights_alone_the_epochs_count_from_one(engine: Engine) -> None:
    old = engine.head()
    other, reached = watched(engine)
    finished = other.finish(continue_from=old.fingerprint[:12], carry="weights", keep_last=9)
    assert reached == list(range(1, 10))
    assert [(e.step, e.epoch) for e in finished.head.entries()] == [(3, 1), (6, 2), (9, 3)]
    manifest = engine.store.manifest(first_of(finished.head))
    assert manifest.identity["start"] == {"state": states(old)[9], "carry": "weights", "step": 0}
    assert manifest.parent == states(old)[9]
    assert not set(states(finished.head).values()) & set(states(old).values())


@pytest.mark.parametrize("step", [2, 3])
def test_with_weights_alone_the_rows_of_the_start_are_not_those_of_the_epoch(step: int) -> None:
    engine = Engine()
    old = engine.finish(checkpoint_steps=1, keep_last=9).head
    finished = engine.finish(continue_from=f"{old.fingerprint[:12]}@{step}", carry="weights", keep_last=9)
    assert finished.steps_done == 9
    assert [len(rows) for rows in rows_of(engine, finished.head, 3)] == [4, 4, 2]


def test_weights_alone_fit_another_batch_size_and_everything_does_not(engine: Engine) -> None:
    prefix = engine.head().fingerprint[:12]
    with pytest.raises(ConfigError) as refused:
        engine.finish(continue_from=prefix, batch_size=5, epochs=5)
    assert str(refused.value) == (
        f"continue_from: {prefix}: its epochs have 3 steps, and this recipe's 2\n"
        "  fix: carry: weights, which counts epochs from 1 again"
    )
    assert engine.finish(continue_from=prefix, batch_size=5, epochs=5, carry="weights").steps_done == 10


def test_a_failure_in_a_continuation_goes_on_from_its_start_or_its_own_checkpoint(engine: Engine) -> None:
    fields: dict[str, Any] = {"continue_from": engine.head().fingerprint[:12], "epochs": 5, "keep_last": 9}
    alone = Engine()
    alone.finish(keep_last=3)
    whole = states(alone.finish(**fields).head)
    for step in (11, 14):
        with pytest.raises(Planted):
            engine.with_(adapter=failing_at(step)).finish(**fields)
    other, reached = watched(engine)
    finished = other.finish(**fields)
    assert reached == [13, 14, 15]
    assert states(finished.head) == whole


def test_going_on_inside_an_epoch_completes_its_ledger() -> None:
    engine = Engine()
    with pytest.raises(Planted):
        engine.with_(adapter=failing_at(6)).finish(checkpoint_steps=1, keep_last=9)
    old = engine.head()
    assert old.entries()[-1].step == 5
    other, reached = watched(engine)
    finished = other.finish(continue_from=old.fingerprint[:12], learning_rate=0.5, keep_last=9)
    assert reached == [6, 7, 8, 9]
    assert rows_of(engine, finished.head, 6)[:2] == rows_of(engine, old, 5)
    assert sorted(row for step in rows_of(engine, finished.head, 6) for row in step) == list(range(ROWS))
    steps = engine.store.steps(engine.store.manifest(first_of(finished.head)))
    assert [step.global_step for step in steps] == [4, 5, 6]


def test_an_epoch_that_max_steps_ended_early_is_completed_first() -> None:
    """Its checkpoint ends an epoch of the run that made it, and lies inside one of the run that goes further."""
    engine = Engine()
    engine.finish(max_steps=4)
    old = engine.head()
    assert [(e.step, e.epoch_complete) for e in old.entries()] == [(3, True), (4, True)]
    other, reached = watched(engine)
    finished = other.finish(continue_from=old.fingerprint[:12], keep_last=9)
    assert reached == [5, 6, 7, 8, 9]
    assert [(e.step, e.epoch) for e in finished.head.entries()] == [(6, 2), (9, 3)]
    assert rows_of(engine, finished.head, 6)[:1] == rows_of(engine, old, 4)
    assert sorted(row for step in rows_of(engine, finished.head, 6) for row in step) == list(range(ROWS))


# Latest


def test_latest_is_the_newest_run_and_the_second_launch_is_the_same_continuation(engine: Engine) -> None:
    first = engine.head()
    fields: dict[str, Any] = {"continue_from": "latest", "epochs": 5}
    other, reached = watched(engine)
    finished = other.finish(**fields)
    assert reached == list(range(10, 16))
    again, reached_again = watched(engine)
    second = again.finish(**fields)
    assert (second.steps_done, reached_again) == (0, [])
    assert second.head.fingerprint == finished.head.fingerprint
    # One more change goes on from the continuation.
    third, reached_third = watched(engine)
    longest = third.finish(continue_from="latest", epochs=6)
    assert reached_third == [16, 17, 18]
    start = engine.store.manifest(first_of(longest.head)).identity["start"]
    assert start["state"] == states(finished.head)[15]
    assert start["state"] not in states(first).values()
    assert engine.finish(continue_from="latest", epochs=6).steps_done == 0


def test_latest_of_a_continuation_that_was_cut_off_is_that_continuation(engine: Engine) -> None:
    fields: dict[str, Any] = {"continue_from": "latest", "epochs": 5}
    for step in (10, 14):
        with pytest.raises(Planted):
            engine.with_(adapter=failing_at(step)).finish(**fields)
    other, reached = watched(engine)
    assert other.finish(**fields).head.last_epoch() == 5
    assert reached == [13, 14, 15]
    assert len(engine.store.find("")) == 2


def test_latest_passes_over_a_run_that_has_nothing_to_go_on_from(engine: Engine) -> None:
    old = engine.head()
    with pytest.raises(Planted):
        engine.with_(adapter=failing_at(10)).finish(continue_from="latest", epochs=5, learning_rate=9.0)
    other, reached = watched(engine)
    finished = other.finish(continue_from="latest", epochs=5, learning_rate=1.0)
    assert reached == list(range(10, 16))
    assert engine.store.manifest(first_of(finished.head)).parent == states(old)[9]


def test_latest_is_of_the_same_recipe() -> None:
    engine = Engine()
    engine.finish()
    launch = engine.launch(continue_from="latest")
    launch.name = "another"
    from kitchen_resources.training.run import TrainingRun

    with pytest.raises(ConfigError) as refused:
        TrainingRun(launch, engine.told).planned()
    assert str(refused.value) == (
        "continue_from: latest: recipe another has no run with a whole checkpoint yet\n"
        "  fix: run it once without continue_from"
    )


# Refused


@pytest.mark.parametrize(
    "named", ["", "abc", "xyz1", "ABCD1234", "latest@", "abcd@x", "abcd@-1", "abcd@1@2", "a" * 65]
)
def test_what_names_nothing_is_refused(engine: Engine, named: str) -> None:
    with pytest.raises(ConfigError) as refused:
        engine.run(continue_from=named).planned()
    assert str(refused.value) == (
        f"continue_from: {named!r} is neither a fingerprint's first digits nor latest\n"
        "  fix: continue_from: 3f2a91c04b77, 3f2a91c04b77@400, or latest"
    )


def test_an_unknown_run_is_refused(engine: Engine) -> None:
    with pytest.raises(ConfigError, match=r"^continue_from: no run starts with 0123abcd\n"):
        engine.run(continue_from="0123abcd").planned()


def test_an_ambiguous_prefix_is_refused_and_the_runs_are_shown(engine: Engine) -> None:
    real = engine.head().fingerprint
    twin = real[:20] + ("0" if real[20] != "0" else "1") + real[21:]
    acquire(engine.blobs, twin, run="twin", wait_s=0.0).release()
    with pytest.raises(ConfigError) as refused:
        engine.run(continue_from=real[:8]).planned()
    shown = ", ".join(sorted([real[:16], twin[:16]]))
    assert str(refused.value) == (f"continue_from: 2 runs start with {real[:8]}\n  fix: give more digits: {shown}")
    assert engine.run(continue_from=real, epochs=4).planned().missing == (4,)


def test_a_step_that_is_not_there_or_was_pruned_is_refused_and_the_others_are_shown(engine: Engine) -> None:
    fingerprint = engine.head().fingerprint
    lease = acquire(engine.blobs, fingerprint, run="prune", wait_s=0.0)
    engine.store.prune(lease, {6, 9}, "by hand")
    lease.release()
    for step in (3, 4):
        with pytest.raises(ConfigError) as refused:
            engine.run(continue_from=f"{fingerprint[:12]}@{step}").planned()
        assert str(refused.value) == (
            f"continue_from: {fingerprint[:12]}@{step}: run {fingerprint[:12]} has no whole checkpoint at step {step}\n"
            "  fix: one of 6, 9"
        )


def test_a_run_without_any_whole_checkpoint_is_refused(engine: Engine) -> None:
    fingerprint = engine.head().fingerprint
    lease = acquire(engine.blobs, fingerprint, run="prune", wait_s=0.0)
    engine.store.prune(lease, set(), "by hand")
    lease.release()
    for named in (fingerprint[:12], f"{fingerprint[:12]}@9"):
        with pytest.raises(ConfigError, match=f"run {fingerprint[:12]} has no whole checkpoint\n"):
            engine.run(continue_from=named, epochs=5).planned()
    with pytest.raises(ConfigError, match="recipe supervised has no run with a whole checkpoint yet"):
        engine.run(continue_from="latest", epochs=5).planned()


def test_a_damaged_start_is_refused_before_a_step_and_the_run_it_is_of_stays(engine: Engine) -> None:
    head = engine.head()
    (file,) = engine.store.manifest(head.entries()[-1]).files.values()
    (key,) = [key for key in engine.blobs.list("runs/") if key.endswith(file.sha256)]
    engine.blobs.delete(key)
    other, reached = watched(engine)
    with pytest.raises(CheckpointError, match=r"step 9: simulated\.json is missing"):
        other.finish(continue_from=head.fingerprint[:12], epochs=5)
    assert reached == []
    assert engine.store.head(head.fingerprint) == head


@pytest.mark.parametrize("named", ["latest", "prefix", "step"])
def test_a_continuation_outlives_the_payload_of_what_it_continued(engine: Engine, named: str) -> None:
    fingerprint = engine.head().fingerprint
    reference = {"latest": "latest", "prefix": fingerprint[:12], "step": f"{fingerprint[:12]}@9"}[named]
    fields: dict[str, Any] = {"continue_from": reference, "epochs": 5}
    with pytest.raises(Planted):
        engine.with_(adapter=failing_at(14)).finish(**fields)
    lease = acquire(engine.blobs, fingerprint, run="prune", wait_s=0.0)
    engine.store.prune(lease, set(), "by hand")
    lease.release()
    other, reached = watched(engine)
    assert other.finish(**fields).head.last_epoch() == 5
    assert reached == [13, 14, 15]
    assert engine.finish(**fields).steps_done == 0


def test_the_files_of_the_start_are_fetched_by_the_first_epoch_and_by_nobody_else(engine: Engine) -> None:
    fields: dict[str, Any] = {"continue_from": "latest", "epochs": 5}
    read: list[str] = []
    sound = engine.blobs
    engine.blobs = FaultyBlobs(sound, before=lambda verb, key: read.append(key) if verb == "get_file" else None)
    run = engine.run(**fields)
    run.planned()
    assert [key for key in read if "/payload/" in key] == []
    run.ensure(4)
    assert len([key for key in read if "/payload/" in key]) == 1


@pytest.mark.parametrize(
    "change", [{"payload": "quarantined"}, {"state_digest": "e" * 64}], ids=["quarantined", "made anew"]
)
def test_a_start_that_went_away_meanwhile_is_said(engine: Engine, change: dict[str, Any]) -> None:
    fingerprint = engine.head().fingerprint
    run = engine.run(continue_from=fingerprint[:12], epochs=5)
    run.planned()
    lease = acquire(engine.blobs, fingerprint, run="other", wait_s=0.0)
    lease.update(lambda head: head.with_entry(9, **change))
    lease.release()
    with pytest.raises(CheckpointError) as refused:
        run.ensure(4)
    assert str(refused.value) == (
        f"run {fingerprint[:12]}, step 9: the checkpoint that is continued is not there any more\n"
        "  fix: name another one in continue_from"
    )


def test_another_base_is_refused(engine: Engine) -> None:
    prefix = engine.head().fingerprint[:12]
    with pytest.raises(ConfigError) as refused:
        engine.run(continue_from=prefix, model="other/model").planned()
    assert str(refused.value) == (
        f"continue_from: {prefix}: it was trained from another base model\n  fix: model: some/model"
    )


@pytest.mark.parametrize("carry", ["all", "weights"])
def test_a_lora_of_another_shape_is_refused(carry: str) -> None:
    engine = Engine()
    lora = {"rank": 4, "target_modules": ["b", "a"]}
    engine.finish(lora=lora)
    fields: dict[str, Any] = {"continue_from": engine.head().fingerprint[:12], "epochs": 4, "carry": carry}
    same = {**lora, "alpha": 3, "dropout": 0.5, "target_modules": ["a", "b"]}
    assert engine.run(**fields, lora=same).planned().epochs == 4
    for other in ({**lora, "rank": 8}, {**lora, "target_modules": ["a"]}):
        with pytest.raises(ConfigError, match="its LoRA is of another shape\n  fix: give lora the same rank"):
            engine.run(**fields, lora=other).planned()
    with pytest.raises(ConfigError, match="one of the two trains a LoRA\n"):
        engine.run(**fields).planned()


def test_the_state_of_another_optimiser_is_refused_but_for_its_weights(engine: Engine) -> None:
    fields: dict[str, Any] = {"continue_from": engine.head().fingerprint[:12], "epochs": 5, "optimizer": "sgd"}
    with pytest.raises(ConfigError, match="its optimiser's state doesn't fit this recipe\n  fix: carry: weights"):
        engine.run(**fields).planned()
    assert engine.run(**fields, carry="weights").planned().missing == (1, 2, 3, 4, 5)


def test_a_run_that_is_no_longer_than_what_it_continues_is_refused(engine: Engine) -> None:
    prefix = engine.head().fingerprint[:12]
    with pytest.raises(ConfigError) as refused:
        engine.run(continue_from=prefix, epochs=2).planned()
    assert str(refused.value) == (
        "epochs: is 2, and the run that is continued has 3 epochs already\n  fix: epochs: 5"
    )
    with pytest.raises(ConfigError) as refused:
        engine.run(continue_from=f"{prefix}@6", max_steps=6).planned()
    assert str(refused.value) == (
        "max_steps: is 6, and the run that is continued has done 6 steps already\n  fix: max_steps: 12"
    )
    assert engine.run(continue_from=f"{prefix}@6", max_steps=7).planned().missing == (3,)
    # Inside an epoch there may be something left of it.
    with pytest.raises(Planted):
        engine.with_(adapter=failing_at(6)).finish(seed=1, checkpoint_steps=1, keep_last=9)
    inside = engine.run(seed=1).fingerprint[:12]
    assert engine.run(seed=1, continue_from=f"{inside}@5", epochs=2).planned().missing == (2,)
    with pytest.raises(ConfigError, match="max_steps: is 5, and the run that is continued has done 5 steps"):
        engine.run(seed=1, continue_from=f"{inside}@5", max_steps=5).planned()


def test_other_rows_can_be_gone_on_with_from_an_epochs_end_only() -> None:
    engine = Engine()
    with pytest.raises(Planted):
        engine.with_(adapter=failing_at(6)).finish(checkpoint_steps=1, keep_last=9)
    prefix = engine.head().fingerprint[:12]
    # Eleven rows make three steps, too.
    other = engine.with_(datasets=NoopDatasets(ROWS + 1))
    with pytest.raises(ConfigError, match="it lies inside an epoch over other rows"):
        other.run(continue_from=f"{prefix}@5").planned()
    assert other.finish(continue_from=f"{prefix}@3").steps_done == 6


def test_the_start_is_part_of_the_identity_and_its_place_is_not(engine: Engine) -> None:
    prefix = engine.head().fingerprint
    runs = [
        engine.run(continue_from=prefix[:12], epochs=5),
        engine.run(continue_from=prefix, epochs=5),
        engine.run(continue_from=f"{prefix[:8]}@9", epochs=5),
        engine.run(continue_from="latest", epochs=5),
    ]
    assert len({run.fingerprint for run in runs}) == 1
    others = [
        engine.run(continue_from=f"{prefix[:12]}@6", epochs=5),
        engine.run(continue_from=prefix[:12], epochs=5, carry="weights"),
        engine.run(epochs=5),
    ]
    assert len({run.fingerprint for run in [runs[0], *others]}) == 4
    assert engine.blobs.get(head_key(runs[0].fingerprint)) is None
