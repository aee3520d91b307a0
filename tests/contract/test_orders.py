"""The trainer port's contract over epochs that are ordered through the store, and what a lost side leaves.

How soon a call stops that was asked to is in tests/peers/test_modal.py, where calls run beside their launcher.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.blobs.content import ContentStore
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.digests import digest_file
from kitchen_resources.errors import (
    BackendError,
    BlobError,
    CapabilityError,
    CheckpointError,
    DiskFull,
    FormatError,
    LeaseLost,
)
from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.recipe import RecipeDefinition
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.storage.collection import collect
from kitchen_resources.training.base_models import resolve_base
from kitchen_resources.training.orders import carrying_out
from kitchen_resources.training.orders.carrying_out import carry_out
from kitchen_resources.training.orders.order import Order, end_orders, fetch_files, order_at, orders_of
from kitchen_resources.training.orders.placing import ordered_job
from kitchen_resources.training.orders.port import Ended
from kitchen_resources.training.port import LocalCheckpoint, StepMetrics, Trainer
from kitchen_resources.training.pytorch.machine import to_run_here
from kitchen_resources.training.trl.backend import TrlTrainer
from tests.contract import test_trainer as contract
from tests.contract.test_trainer import (  # noqa: F401  (tests that pytest finds here)
    Backend,
    test_a_resolution_leaves_nothing_open,
    test_a_simulated_base_is_refused_by_whoever_trains,
    test_a_sound_recipe_has_no_problem,
    test_a_state_is_safetensors_and_json,
    test_arguments_of_ones_own_are_checked_before_work,
    test_capabilities,
    test_checkpoints_lie_at_the_end_of_every_epoch_and_where_they_are_asked_for,
    test_every_row_is_received_once_an_epoch_as_planned,
    test_it_is_a_trainer,
    test_numbers_of_an_epoch,
    test_steps_follow_the_plan,
)
from tests.ordering import CallsHere, OrderingTrainer
from tests.training_bench import SMALL, Bench, Shelf

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Backend:
    folder = tmp_path_factory.mktemp("trainer")

    def make() -> Trainer:
        return OrderingTrainer(folder / "store")

    return Backend("orders", Bench(make(), folder / "bench"), make)


@pytest.mark.parametrize("step", [2, 4])
def test_from_inside_an_epoch(backend: Backend, step: int) -> None:
    contract.test_resume_from_inside_an_epoch_gives_the_same_state(backend, step)


def test_from_an_epochs_end(backend: Backend) -> None:
    contract.test_resume_from_an_epochs_end_gives_the_same_state(backend)


def test_a_report_that_fails(backend: Backend) -> None:
    contract.test_a_failed_report_ends_the_epoch_and_publishes_nothing(backend)


def test_weights_alone(backend: Backend) -> None:
    contract.test_weights_alone_start_at_step_one(backend)


def test_an_adapter(backend: Backend, tmp_path: Path) -> None:
    contract.test_an_adapter(backend, tmp_path)


def test_it_has_the_bits_of_trl(backend: Backend, tmp_path: Path) -> None:
    bench = Bench(TrlTrainer(device="cpu", threads=1), tmp_path / "bench")
    shelf = bench.shelf()
    bench.train(bench.job(checkpoint_steps=2), shelf)
    assert backend.undisturbed.digests() == shelf.digests()


# Lost sides. Each has a store and a bench of its own.


class Bought:
    """A bench whose epochs are ordered."""

    def __init__(self, folder: Path, work: Callable[[str, str, BlobStore], None] = carry_out) -> None:
        self.trainer = OrderingTrainer(folder / "store", work=work)
        self.bench = Bench(self.trainer, folder / "bench")
        self.job = self.bench.job(checkpoint_steps=2)

    @property
    def calls(self) -> CallsHere:
        return self.trainer.calls

    def train(self, shelf: Shelf, parent: LocalCheckpoint | None = None, epochs: tuple[int, ...] = (1,)) -> None:
        self.bench.train(self.job, shelf, epochs, parent)

    def orders(self) -> list[Order]:
        return orders_of(self.trainer.blobs, self.job.fingerprint)


@pytest.fixture
def bought(tmp_path: Path) -> Bought:
    return Bought(tmp_path)


class LosesItsLease(Shelf):
    """Is taken over at its third step."""

    def step(self, metrics: StepMetrics) -> None:
        super().step(metrics)
        if metrics.global_step == 3:
            raise LeaseLost("taken over")


def test_who_takes_over_follows_the_order_and_hears_what_nobody_has_heard(bought: Bought) -> None:
    first = LosesItsLease(bought.bench.folder / "first")
    with pytest.raises(LeaseLost):
        bought.train(first)
    assert list(first.checkpoints) == [2]
    (order,) = bought.orders()
    assert order.get("over") is None
    assert bought.calls.canceled == []
    second = Shelf(bought.bench.folder / "second")
    bought.train(second, first.checkpoints[2])
    assert list(second.checkpoints) == [3], "what is published already isn't published again"
    assert list(bought.calls.made) == ["call-1"]
    assert order.get("over") == {"how": "done"}
    whole = Bought(bought.bench.folder / "whole")
    undisturbed = whole.bench.shelf()
    whole.train(undisturbed)
    assert {**first.digests(), **second.digests()} == undisturbed.digests()


def test_steps_that_were_told_of_are_not_told_again(bought: Bought) -> None:
    order = Order(bought.trainer.blobs, bought.job.fingerprint, 1)
    with pytest.raises(BlobError):
        bought.train(_FailsAt(bought.bench.folder / "first"))
    order.replace("heard", {"step": 2})
    second = bought.bench.shelf()
    bought.train(second)
    assert [step.global_step for step in second.steps] == [3]


class _FailsAt(Shelf):
    """A store that is away at the first step."""

    def step(self, metrics: StepMetrics) -> None:
        raise BlobError("away")


def test_an_order_of_another_epoch_is_called_off_before_one_is_placed(bought: Bought) -> None:
    with pytest.raises(BlobError):
        bought.train(_FailsAt(bought.bench.folder / "first"))
    whole = Bought(bought.bench.folder / "whole")
    undisturbed = whole.bench.shelf()
    whole.train(undisturbed)
    bought.train(bought.bench.shelf(), undisturbed.checkpoints[3], (2,))
    first, second = bought.orders()
    assert bought.calls.canceled == ["call-1"]
    assert (first.get("over"), second.get("over")) == ({"how": "another order took its place"}, {"how": "done"})


def test_none_is_placed_beside_one_that_cannot_be_called_off(bought: Bought) -> None:
    with pytest.raises(BlobError):
        bought.train(_FailsAt(bought.bench.folder / "first"))
    parent = LocalCheckpoint(bought.bench.folder, 1, 3, 3, epoch_complete=True, state_digest="0" * 64)
    bought.calls.refuse = BackendError("away", retriable=True)
    with pytest.raises(BackendError, match="away"):
        bought.train(bought.bench.shelf(), parent, (2,))
    (order,) = bought.orders()
    assert order.get("over") is None
    assert order.get("stop") == {}, "where it can still be told, it is told"
    assert list(bought.calls.made) == ["call-1"]


def test_a_call_of_an_order_that_is_over_changes_nothing(bought: Bought) -> None:
    bought.train(bought.bench.shelf())
    (order,) = bought.orders()
    before = sorted(bought.trainer.blobs.list(order.key))
    carry_out(order.key, "another", bought.trainer.blobs)
    assert sorted(bought.trainer.blobs.list(order.key)) == before


def test_a_call_whose_id_was_lost_is_known_by_its_claim_and_alone_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost_then_found(key: str, call: str, blobs: BlobStore) -> None:
        # The launcher that made the first one died before it noted the id.
        carry_out(key, "the lost one", blobs)
        carry_out(key, call, blobs)

    trained = []
    real = carrying_out._train

    def counted(*given: Any) -> None:
        trained.append(given)
        real(*given)

    monkeypatch.setattr(carrying_out, "_train", counted)
    bought = Bought(tmp_path, lost_then_found)
    shelf = bought.bench.shelf()
    bought.train(shelf)
    assert [step.global_step for step in shelf.steps] == [1, 2, 3]
    assert bought.trainer.followed == ["the lost one"]
    assert len(trained) == 1


def test_the_end_of_a_call_that_another_one_was_before_is_not_the_orders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bought = Bought(tmp_path, lambda key, call, blobs: None)
    blobs = bought.trainer.blobs

    def ended(call: str) -> Ended | None:
        (key,) = bought.calls.made.values()
        if call == "call-1":
            # The one whose id was lost claims the order just now, and so this one has ended.
            order_at(blobs, key).put("claim", {"call": "the lost one"})
            return Ended()
        blobs.delete(f"{key}claim.json")
        carry_out(key, "the lost one", blobs)
        return None

    monkeypatch.setattr(bought.calls, "ended", ended)
    shelf = bought.bench.shelf()
    bought.train(shelf)
    assert [step.global_step for step in shelf.steps] == [1, 2, 3]
    assert bought.trainer.followed == ["call-1", "the lost one"]
    assert bought.orders()[0].get("over") == {"how": "done"}


def test_a_call_that_is_begun_twice_says_so(tmp_path: Path) -> None:
    def begun_twice(key: str, call: str, blobs: BlobStore) -> None:
        order = order_at(blobs, key)
        order.put("claim", {"call": call})
        order.say(1, [])
        carry_out(key, call, blobs)

    bought = Bought(tmp_path, begun_twice)
    with pytest.raises(BackendError, match="the machine of the call was lost") as lost:
        bought.train(bought.bench.shelf())
    assert lost.value.mendable
    assert bought.orders()[0].get("over") == {"how": "BackendError"}


@pytest.mark.parametrize(
    ("ended", "message", "mendable"),
    [
        (Ended(), "the call call-1 ended: it returned, and said nothing of an end", True),
        (
            Ended("Modal ended it at its timeout", "raise timeout", retriable=False),
            "at its timeout.*raise timeout",
            False,
        ),
    ],
)
def test_an_end_that_nothing_was_said_of(tmp_path: Path, ended: Ended, message: str, mendable: bool) -> None:
    bought = Bought(tmp_path, lambda key, call, blobs: None)
    bought.calls.how["call-1"] = ended
    with pytest.raises(BackendError, match=f"(?s){message}") as error:
        bought.train(bought.bench.shelf())
    assert error.value.mendable is mendable
    assert bought.orders()[0].get("over") == {"how": "BackendError"}


def test_what_went_wrong_there_is_raised_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(wanted: Any) -> None:
        raise CapabilityError("has trl 1.0", where="the function's image", fix="deploy it again")

    monkeypatch.setattr(carrying_out, "require_same_libraries", refuse)
    bought = Bought(tmp_path)
    with pytest.raises(CapabilityError, match=r"the function's image: has trl 1\.0\n  fix: deploy it again"):
        bought.train(bought.bench.shelf())


def test_libraries_are_compared_without_their_builds() -> None:
    import trl

    carrying_out.require_same_libraries({"trl": f"{trl.__version__}+cu130", "device": "a GPU of Modal", "threads": 4})
    with pytest.raises(CapabilityError, match=r"has trl .*, and the launcher 1\.0\.0"):
        carrying_out.require_same_libraries({"trl": "1.0.0"})


def test_what_an_order_needs_is_kept_from_a_collection_and_given_up_at_its_end(bought: Bought) -> None:
    blobs = bought.trainer.blobs
    days = iter(range(1, 100))

    def collected() -> int:
        deleted = 0
        for _ in range(2):
            at = 86_400.0 * next(days)
            deleted += len(collect(blobs, grace_s=0.0, launch_age_s=0.0, clock=lambda at=at: at).deleted)  # type: ignore[misc]
        return deleted

    with pytest.raises(BlobError):
        bought.train(_FailsAt(bought.bench.folder / "first"))
    held = set(blobs.list("blobs/sha256/"))
    assert collected() == 0
    assert set(blobs.list("blobs/sha256/")) == held
    bought.train(bought.bench.shelf())
    assert collected() == len(held)


def test_an_order_of_a_later_version_is_left_alone(bought: Bought) -> None:
    order = Order(bought.trainer.blobs, bought.job.fingerprint, 1)
    order.put("order", {"format": 2})
    with pytest.raises(FormatError, match="a later version"):
        bought.train(bought.bench.shelf())
    assert bought.calls.made == {}


def test_an_order_names_no_path_that_it_needs(bought: Bought) -> None:
    with pytest.raises(BlobError):
        bought.train(_FailsAt(bought.bench.folder / "first"))
    value = bought.orders()[0].get("order")
    assert value is not None
    assert len(value["data"]) == 64
    assert set(value["job"]["base"]["files"]) >= {"config.json", "model.safetensors"}
    elsewhere = bought.trainer.blobs.scratch().parent / "elsewhere"
    for kept in (bought.bench.rows, *bought.job.base.folder.iterdir()):  # type: ignore[union-attr]
        kept.unlink()
    job = ordered_job(bought.trainer.blobs, value, elsewhere)
    assert job.data.path.is_relative_to(elsewhere)
    assert digest_file(job.data.path) == value["data"]
    assert {path.name: digest_file(path) for path in job.base.folder.iterdir()} == dict(bought.job.base.files)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "error", [BlobError("away", retriable=True), KeyboardInterrupt(), DiskFull("no room")], ids=repr
)
def test_trouble_of_the_calls_own_ends_the_order_and_can_be_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fails(*given: Any) -> None:
        raise error

    bought = Bought(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(carrying_out, "_train", fails)
        with pytest.raises(BackendError) as told:
            bought.train(bought.bench.shelf())
    assert told.value.mendable is not isinstance(error, DiskFull)
    assert bought.orders()[0].get("over") == {"how": "BackendError"}
    bought.train(bought.bench.shelf())
    assert len(bought.calls.made) == 2


def test_who_was_taken_over_neither_orders_nor_calls_off(bought: Bought) -> None:
    class TakenOver(Shelf):
        def check(self) -> None:
            raise LeaseLost("taken over")

    with pytest.raises(LeaseLost):
        bought.train(TakenOver(bought.bench.folder / "first"))
    assert bought.orders() == []

    class TakenOverLater(Shelf):
        asked = 0

        def check(self) -> None:
            self.asked += 1
            if self.asked > 2:
                raise LeaseLost("taken over")

        def step(self, metrics: StepMetrics) -> None:
            raise RuntimeError("whatever")

    with pytest.raises(RuntimeError):
        bought.train(TakenOverLater(bought.bench.folder / "second"))
    assert bought.calls.canceled == []
    assert bought.orders()[0].get("over") is None


def test_a_call_ends_when_its_order_is_over_and_says_no_more(tmp_path: Path) -> None:
    def over_meanwhile(key: str, call: str, blobs: BlobStore) -> None:
        order = order_at(blobs, key)
        say = order.__class__.say

        def ended_first(self: Order, *given: Any) -> None:
            self.end("canceled")
            say(self, *given)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Order, "say", ended_first)
            carry_out(key, call, blobs)

    bought = Bought(tmp_path, over_meanwhile)
    with pytest.raises(BackendError):
        bought.train(bought.bench.shelf())
    (order,) = bought.orders()
    assert sorted(bought.trainer.blobs.list(order.key)) == [
        f"{order.key}{name}.json" for name in ("call", "claim", "over")
    ]


@pytest.mark.parametrize("name", ["../out", "/etc/out", ".."])
def test_names_that_lead_out_of_a_folder_are_refused(bought: Bought, tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        fetch_files(ContentStore(bought.trainer.blobs), {name: "0" * 64}, tmp_path / "in")
    assert not (tmp_path / "out").exists()


def test_a_run_that_goes_on_by_another_backend_ends_the_order(bought: Bought) -> None:
    with pytest.raises(BlobError):
        bought.train(_FailsAt(bought.bench.folder / "first"))
    said: list[str] = []
    end_orders(bought.trainer.blobs, bought.job.fingerprint, "trained by another backend", said.append)
    assert said == ["ended an open order of this run: trained by another backend"]
    assert bought.orders()[0].get("over") == {"how": "trained by another backend"}
    end_orders(bought.trainer.blobs, bought.job.fingerprint, "again", said.append)
    assert len(said) == 1


def test_what_is_evaluated_of_a_run_that_trains_elsewhere_runs_here(tmp_path: Path) -> None:
    recipe = bind(SupervisedRecipe, {**SMALL, "attention": "flash_attention_2"}, RecipeDefinition(name="small"))
    base = resolve_base(recipe.model, tmp_path)
    there = TrlTrainer(device="cuda", elsewhere="Modal").resolve(recipe, base)
    assert (there.device, there.values["precision"], there.values["attention"]) == (
        "cuda:0",
        "fp32",
        "flash_attention_2",
    )
    assert there.environment["device"] == "a GPU of Modal"
    assert to_run_here(there) == ("cpu", "sdpa")
    here = TrlTrainer(device="cpu").resolve(recipe.model_copy(update={"attention": "eager"}), base)
    assert to_run_here(here) == ("cpu", "eager")
