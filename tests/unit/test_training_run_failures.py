"""A training run that fails, is interrupted, is not alone, or has no room: nothing is lost, and nobody is held up."""

from dataclasses import replace
from typing import Any

import pytest

from kitchen_resources.checkpoints.head import Holder, encode_head, head_key
from kitchen_resources.checkpoints.lease import Lease, acquire
from kitchen_resources.errors import CheckpointError, DiskFull, EarlierFailure, LeaseHeld, LeaseLost
from kitchen_resources.training import run as run_module
from kitchen_resources.training.live import LiveTrainer
from kitchen_resources.training.noop import NoopTrainer
from kitchen_resources.training.preflight import preflight
from tests.engine import (
    ROWS,
    Engine,
    HookedTrainer,
    Planted,
    epoch_ends,
    failing_at,
    needed_files,
    payload_keys,
    states,
    undisturbed,
)
from tests.faulty_blobs import FaultyBlobs


@pytest.fixture
def engine() -> Engine:
    return Engine()


def ledger(engine: Engine, step: int) -> list[list[int]]:
    entry = engine.head().at(step)
    assert entry is not None
    return engine.store.ledger(engine.store.manifest(entry))


# Step checkpoints


def test_step_checkpoints_lie_in_between_and_change_no_bits(engine: Engine) -> None:
    head = engine.finish(checkpoint_steps=2, keep_last=100).head
    assert [(e.step, e.epoch_complete) for e in head.entries()] == [
        (2, False),
        (3, True),
        (4, False),
        (6, True),
        (8, False),
        (9, True),
    ]
    assert epoch_ends(head) == undisturbed()
    assert [len(step) for step in ledger(engine, 4)] == [4]
    assert head.last_epoch() == 3
    parents = [engine.store.manifest(entry).parent for entry in head.entries()]
    assert parents == ["", *list(states(head).values())[:-1]]


@pytest.mark.parametrize("step", [5, 6])
def test_a_failure_inside_an_epoch_goes_on_from_the_last_step_checkpoint(engine: Engine, step: int) -> None:
    with pytest.raises(Planted):
        engine.with_(adapter=failing_at(step)).finish(checkpoint_steps=1)
    assert engine.head().holder is None
    reached: list[int] = []
    finished = engine.with_(adapter=HookedTrainer(reached.append)).finish(checkpoint_steps=1)
    assert reached == list(range(step, 10))
    assert finished.steps_done == len(reached)
    assert epoch_ends(finished.head) == undisturbed()
    assert sorted(row for rows in ledger(engine, 6) for row in rows) == list(range(ROWS))
    assert ledger(engine, 6)[: step - 4] == ledger(engine, step - 1)


def test_step_checkpoints_fill_no_disk_inside_an_epoch(engine: Engine) -> None:
    whole: list[int] = []

    def count(step: int) -> None:
        whole.append(sum(entry.payload == "present" for entry in engine.head().entries()))

    other = engine.with_(adapter=HookedTrainer(count))
    other.finish(checkpoint_steps=1, batch_size=1, epochs=1, keep_last=2)
    assert max(whole) == 2
    assert [entry.payload for entry in engine.head().entries()] == ["pruned"] * 8 + ["present"] * 2
    assert len(payload_keys(engine)) == needed_files(engine) == 2


# Failures


def test_a_failure_publishes_nothing_of_its_epoch_and_the_next_run_goes_on(engine: Engine) -> None:
    with pytest.raises(Planted):
        engine.with_(adapter=failing_at(5)).finish()
    assert states(engine.head()) == {3: undisturbed()[3]}
    finished = engine.finish()
    assert finished.steps_done == 6
    assert epoch_ends(finished.head) == undisturbed()
    assert engine.told.said[0] == "going on from step 3 (epoch 1)"


def test_after_a_failure_later_epochs_of_the_same_run_fail_at_once(engine: Engine) -> None:
    failing = engine.with_(adapter=failing_at(5))
    failing.run(run_id="first").planned()
    with pytest.raises(Planted):
        failing.run(run_id="first").ensure(2)
    # The epochs that exist are still no failure.
    assert failing.run(run_id="first").ensure(1) == 0
    sound = engine.with_()
    with pytest.raises(EarlierFailure) as refused:
        sound.run(run_id="first").ensure(3)
    assert str(refused.value) == (
        "recipe supervised: an earlier epoch of this run failed: Planted: at step 5\n"
        "  fix: see that epoch's error; then run again, it goes on from what is published"
    )
    assert sound.told.steps == []
    # Another run goes on, also one that re-executes the first.
    assert sound.run(run_id="second", root_id="first").ensure(3) == 6


def test_a_failure_of_one_run_stops_no_other_of_the_same_launch(engine: Engine) -> None:
    with pytest.raises(Planted):
        engine.with_(adapter=failing_at(5)).run(run_id="one", seed=1).ensure(2)
    assert engine.run(run_id="one").ensure(2) == 6


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), GeneratorExit()], ids=repr)
def test_an_interrupt_gives_the_lease_back_and_closes_the_session(engine: Engine, error: BaseException) -> None:
    live = LiveTrainer(failing_at(5, error))
    with pytest.raises(type(error)):
        engine.run(live=live).ensure(3)
    assert engine.head().holder is None
    assert live.job is None
    assert list((engine.blobs.scratch() / "runs").glob("*/*")) == []
    finished = engine.finish()
    assert finished.steps_done == 6
    assert epoch_ends(finished.head) == undisturbed()


def test_a_session_that_fails_to_close_hides_nothing_and_leaves_no_scratch(engine: Engine) -> None:
    class Stuck(NoopTrainer):
        def open(self, job: Any) -> Any:
            session = super().open(job)
            session.close = lambda: (_ for _ in ()).throw(Planted("does not close"))  # type: ignore[method-assign]
            return session

    live = LiveTrainer(Stuck())
    engine.run(live=live).ensure(1)
    with pytest.raises(Planted, match="does not close"):
        live.discard()
    assert live.job is None
    assert list((engine.blobs.scratch() / "runs").glob("*/*")) == []


def test_a_run_that_changed_under_way_is_refused(engine: Engine) -> None:
    planned = engine.run(run_id="one")
    planned.planned()
    launch = engine.launch(run_id="one")
    launch.write("prepared", {**launch.read("prepared"), "pad_token_id": 7})
    changed = engine.run(run_id="one")
    with pytest.raises(CheckpointError) as refused:
        changed.ensure(1)
    assert str(refused.value) == (
        "recipe supervised: the base model, the data or the backend changed while the run was going: it was planned "
        f"as {planned.fingerprint[:12]} and now is {changed.fingerprint[:12]}\n  fix: launch it anew"
    )


def test_no_disk_space_is_refused_before_the_epoch_and_in_preflight(engine: Engine) -> None:
    engine.run().ensure(1)
    full = FaultyBlobs(engine.blobs)
    full.free = 3 * 1024 - 1
    short = engine.with_(blobs=full)
    reached: list[int] = []
    short.adapter = HookedTrainer(reached.append)
    with pytest.raises(DiskFull, match=r"needs 0\.0 MiB"):
        short.run().ensure(2)
    with pytest.raises(DiskFull, match="are free"):
        preflight(short.launch())
    assert reached == []
    assert engine.head().holder is None
    full.free = 3 * 1024
    preflight(short.launch())
    assert short.run().ensure(2) == 3


# Others


def test_a_run_that_is_being_trained_is_waited_for_and_its_holder_named(engine: Engine) -> None:
    run = engine.run()
    lease = acquire(engine.blobs, run.fingerprint, run="theirs", wait_s=0.0)
    with pytest.raises(LeaseHeld, match="is being trained by run theirs, process"):
        run.ensure(1)
    assert engine.told.steps == []
    lease.release()
    assert engine.run().ensure(1) == 3


def test_who_waited_finds_the_work_done(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    run = engine.run(lease_wait_s=60.0)
    lease = acquire(engine.blobs, run.fingerprint, run="theirs", wait_s=0.0)

    def meanwhile(seconds: float) -> None:
        lease.release()
        engine.with_().finish()

    from kitchen_resources.checkpoints import lease as module

    monkeypatch.setattr(module.time, "sleep", meanwhile)
    assert run.ensure(3) == 0
    holder: Holder | None = lease.head.holder
    assert holder is None
    assert engine.told.said[0].startswith("waiting for run theirs (process ")
    assert engine.told.steps == []


def test_another_process_in_between_costs_the_live_folder_and_no_bits(engine: Engine) -> None:
    """Whoever takes the lease clears the scratch of attempts before it: also that of one that only pauses."""
    first = LiveTrainer(NoopTrainer())
    engine.run(live=first).ensure(1)
    with pytest.raises(Planted):
        engine.with_(adapter=failing_at(4)).run().ensure(2)
    assert engine.run(live=first).ensure(2) == 3
    engine.with_().run().ensure(3)
    assert engine.run(live=first).ensure(3) == 0
    first.discard()
    assert epoch_ends(engine.head()) == undisturbed()


def test_who_is_taken_over_stops_at_its_next_step(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    leases: list[Lease] = []

    def take(*args: Any, **how: Any) -> Lease:
        leases.append(acquire(*args, **how))
        return leases[-1]

    def taken_over(step: int) -> None:
        if step == 5:
            head = engine.head()
            stored = engine.blobs.get(head_key(head.fingerprint))
            assert stored is not None
            theirs = replace(head, holder=Holder("x", "other/1", "b", 1, 1.0, "run-9"), token=head.token + 1)
            engine.blobs.compare_and_swap(head_key(head.fingerprint), stored.version, encode_head(theirs))
            with pytest.raises(LeaseLost):
                # As the heartbeat does.
                leases[-1].update(lambda head: head)

    monkeypatch.setattr(run_module, "acquire", take)
    reached: list[int] = []
    other = engine.with_(adapter=HookedTrainer(lambda step: (reached.append(step), taken_over(step))[1]))
    with pytest.raises(LeaseLost, match="taken over by run run-9"):
        other.finish()
    assert reached == [1, 2, 3, 4, 5]
    holder = engine.head().holder
    assert holder is not None
    assert holder.run == "run-9"
    assert states(engine.head()).keys() == {3}


def test_what_killed_attempts_left_in_scratch_is_removed_before_training(engine: Engine) -> None:
    left = engine.blobs.scratch() / "runs" / engine.run().fingerprint / "killed" / "state-3"
    left.mkdir(parents=True)
    seen: list[bool] = []
    engine.with_(adapter=HookedTrainer(lambda step: seen.append(left.exists()))).run().ensure(1)
    assert seen == [False] * 3


def test_what_a_finished_run_left_in_scratch_when_it_was_killed_is_removed_by_the_next(engine: Engine) -> None:
    engine.finish()
    left = engine.blobs.scratch() / "runs" / engine.head().fingerprint / "killed"
    left.mkdir(parents=True)
    before = engine.head()
    assert engine.finish().steps_done == 0
    assert not left.exists()
    assert replace(engine.head(), token=before.token) == before
    assert engine.head().token == before.token + 1
    engine.finish()
    assert engine.head().token == before.token + 1


def test_the_scratch_of_a_session_that_is_open_is_no_leftover(engine: Engine) -> None:
    live = LiveTrainer(NoopTrainer())
    engine.run(live=live).finish()
    assert live.job is not None
    assert live.job.scratch.is_dir()
    token = engine.head().token
    engine.run(live=live).finish()
    assert live.job.scratch.is_dir()
    assert engine.head().token == token
    live.discard()


def test_the_folder_of_another_run_is_never_a_parent(engine: Engine) -> None:
    """Two runs can have one state, and the session of the one is closed before the other trains."""
    live = LiveTrainer(NoopTrainer())
    engine.run().ensure(1)
    other = engine.run(seed=1, live=live)
    other.ensure(1)
    assert live.last is not None
    live.keep(replace(live.last, state_digest=engine.run().head().entries()[-1].state_digest), 99)
    assert engine.run(live=live).ensure(3) == 6
    live.discard()
    assert epoch_ends(engine.run().head()) == undisturbed()


def test_interleaved_launches_on_two_data_sets_each_keep_their_own(engine: Engine) -> None:
    live = LiveTrainer(NoopTrainer())
    alone = {name: Engine().finish(dataset=name).head for name in ("one", "two")}
    runs = {name: engine.run(dataset=name, live=live) for name in ("one", "two")}
    for name in ("one", "two"):
        runs[name].planned()
    for epoch in (1, 2, 3):
        for name in ("one", "two"):
            # Each step makes its own launch, as Dagster's do.
            step = engine.run(dataset=name, live=live, run_id=runs[name]._launch.run_id)
            assert step.ensure(epoch) == 3
    live.discard()
    for name, head in alone.items():
        assert runs[name].fingerprint == head.fingerprint
        assert states(runs[name].head()) == states(head)
    assert alone["one"].fingerprint != alone["two"].fingerprint
