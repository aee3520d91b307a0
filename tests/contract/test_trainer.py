"""The trainer port's contract, run over every backend on one small job.

A backend joins by a line in `BACKENDS`. What a backend doesn't claim in its capabilities it isn't asked for.
"""

import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.digests import canonical_json
from kitchen_resources.errors import CapabilityError
from kitchen_resources.formulas.batches import batch_plan
from kitchen_resources.formulas.schedules import learning_rate
from kitchen_resources.numerics import preserved_numerics
from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.recipe import RecipeDefinition
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.training.base_models import simulated_base
from kitchen_resources.training.local.backend import LocalTrainer
from kitchen_resources.training.noop import NoopTrainer
from kitchen_resources.training.port import Capabilities, EpochResult, Trainer
from kitchen_resources.training.trl.backend import TrlTrainer
from tests.training_bench import ROW_IDS, SMALL, Bench, Shelf, TakenOver

BACKENDS: dict[str, Callable[[], Trainer]] = {
    "noop": NoopTrainer,
    "trl": lambda: TrlTrainer(device="cpu", threads=1),
    "local": lambda: LocalTrainer(device="cpu", threads=1),
    "trl, 2 processes": lambda: TrlTrainer(device="cpu", threads=1, processes=2),
}

FIELDS: Mapping[str, Mapping[str, Any]] = {
    # The same four rows a step, in passes that two can share.
    "trl, 2 processes": {"batch_size": 1, "gradient_accumulation_steps": 4}
}
"""Fields without which a backend can't train the small job."""


@dataclass
class Backend:
    """A backend with its bench, and what it made of the small job in one go, checkpointed at every second step."""

    name: str
    bench: Bench
    make: Callable[[], Trainer]
    results: list[EpochResult] = field(default_factory=list)

    @property
    def capabilities(self) -> Capabilities:
        return self.bench.trainer.capabilities()

    @cached_property
    def undisturbed(self) -> Shelf:
        shelf = self.bench.shelf()
        every = {"checkpoint_steps": 2} if "supervised" in self.capabilities.step_checkpoints else {}
        self.results = self.bench.train(self.bench.job(**every), shelf)
        return shelf


def params(names: Iterable[str]) -> list[Any]:
    """Backends as parameters; those that load libraries run after the fast tests, those that start processes longer."""
    marks: dict[str, Any] = {"noop": (), "trl, 2 processes": [pytest.mark.heavy, pytest.mark.full]}
    return [pytest.param(name, marks=marks.get(name, pytest.mark.heavy)) for name in names]


@pytest.fixture(scope="module", params=params(BACKENDS))
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backend:
    name: str = request.param
    bench = Bench(BACKENDS[name](), tmp_path_factory.mktemp("trainer") / "bench", FIELDS.get(name, {}))
    return Backend(name, bench, BACKENDS[name])


def who(claims: Callable[[Capabilities], bool], among: Iterable[str] = BACKENDS) -> pytest.MarkDecorator:
    """Ask only the backends that claim something."""
    claiming = [name for name in among if claims(BACKENDS[name]().capabilities())]
    return pytest.mark.parametrize("backend", params(claiming), indirect=True)


IN_THIS_PROCESS = [name for name in BACKENDS if "processes" not in name]
"""What is asked only of these: several processes do in it what one does, and take long to start."""

alone = pytest.mark.parametrize("backend", params(IN_THIS_PROCESS), indirect=True)


def resumes_exactly(can: Capabilities) -> bool:
    return can.resume == "exact"


def resumes_inside_an_epoch(can: Capabilities) -> bool:
    return can.resume == "exact" and "supervised" in can.step_checkpoints


# Before any work.


def test_it_is_a_trainer(backend: Backend) -> None:
    assert isinstance(backend.bench.trainer, Trainer)


def test_capabilities(backend: Backend) -> None:
    can = backend.capabilities
    assert can.backend == backend.name.partition(",")[0]
    assert "supervised" in can.methods
    assert can.step_checkpoints <= can.methods
    assert can.resume in ("exact", "state", "none")
    assert "none" in can.quantization
    assert can.full or can.lora
    assert can == backend.make().capabilities()


@pytest.mark.parametrize("name", BACKENDS)
def test_capabilities_need_nothing_installed(name: str) -> None:
    of_class = type(BACKENDS[name]())
    program = (
        f"import sys; from {of_class.__module__} import {of_class.__name__} as backend; backend().capabilities(); "
        "print([name for name in ('torch', 'transformers', 'trl', 'datasets', 'peft') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_resolution_leaves_nothing_open(backend: Backend) -> None:
    resolution = backend.bench.job(precision="auto", attention="auto", optimizer="adamw").resolution
    assert resolution.values
    assert not {None, "auto", ""} & set(resolution.values.values())
    assert all(isinstance(version, int) and version >= 1 for version in resolution.algorithm.values())
    assert resolution.algorithm
    assert resolution.threads >= 1
    assert resolution.device not in ("", "auto")
    assert resolution.state_bytes > 0
    assert resolution.memory_bytes >= 0
    # It enters the identity, so it is JSON, and the same when it is asked again.
    assert canonical_json(dict(resolution.values))
    assert canonical_json(dict(resolution.environment))
    assert backend.bench.job(precision="auto", attention="auto", optimizer="adamw").resolution == resolution


def test_a_sound_recipe_has_no_problem(backend: Backend) -> None:
    recipe = bind(SupervisedRecipe, {**SMALL, **backend.bench.fields}, RecipeDefinition(name="small"))
    assert list(backend.bench.trainer.check(recipe)) == []


def test_arguments_of_ones_own_are_checked_before_work(backend: Backend) -> None:
    args = {"adam_beta3": 1.0}
    values = {**SMALL, **backend.bench.fields, "trainer_args": args}
    recipe = bind(SupervisedRecipe, values, RecipeDefinition(name="small"))
    problems = backend.bench.trainer.check(recipe)
    if backend.capabilities.simulated:
        # It has no arguments of its own, and pretends to be any backend.
        assert problems == []
    else:
        assert [field for field, _, _ in problems] == ["trainer_args.adam_beta3"]


def test_a_simulated_base_is_refused_by_whoever_trains(backend: Backend) -> None:
    recipe = bind(SupervisedRecipe, dict(SMALL), RecipeDefinition(name="small"))
    if backend.capabilities.simulated:
        assert backend.bench.trainer.resolve(recipe, simulated_base("org/huge")).memory_bytes == 0
        return
    with pytest.raises(CapabilityError) as refused:
        backend.bench.trainer.resolve(recipe, simulated_base("org/huge"))
    assert refused.value.fix


# Epochs are what the plan says.


def test_steps_follow_the_plan(backend: Backend) -> None:
    shelf = backend.undisturbed
    assert [result.steps_done for result in backend.results] == [3, 3]
    assert [(step.epoch, step.global_step, step.total_steps) for step in shelf.steps] == [
        (1, 1, 6),
        (1, 2, 6),
        (1, 3, 6),
        (2, 4, 6),
        (2, 5, 6),
        (2, 6, 6),
    ]
    rates = [learning_rate(step, schedule="cosine", peak=3.0e-3, total_steps=6, warmup_steps=1) for step in range(6)]
    assert [step.learning_rate for step in shelf.steps] == pytest.approx(rates)
    for step in shelf.steps:
        assert step.loss > 0
        assert step.grad_norm > 0
        assert step.seconds > 0
        assert ("simulated" in step.extra) is backend.capabilities.simulated
    assert shelf.steps[-1].loss < shelf.steps[0].loss


def test_checkpoints_lie_at_the_end_of_every_epoch_and_where_they_are_asked_for(backend: Backend) -> None:
    shelf = backend.undisturbed
    places = {
        step: (draft.epoch, draft.steps_into_epoch, draft.epoch_complete) for step, draft in shelf.drafts.items()
    }
    inside = {2: (1, 2, False), 4: (2, 1, False)} if "supervised" in backend.capabilities.step_checkpoints else {}
    assert places == {3: (1, 3, True), 6: (2, 3, True), **inside}
    assert [result.checkpoint for result in backend.results] == [shelf.checkpoints[3], shelf.checkpoints[6]]
    assert len(set(shelf.digests().values())) == len(places)


def test_every_row_is_received_once_an_epoch_as_planned(backend: Backend) -> None:
    shelf = backend.undisturbed
    for epoch, end in ((1, 3), (2, 6)):
        ledger = [list(step) for step in shelf.drafts[end].row_ids]
        assert [len(step) for step in ledger] == [4, 4, 2]
        assert sorted(row for step in ledger for row in step) == ROW_IDS
        order = backend.capabilities.row_order
        plan = batch_plan(10, seed=0, epoch=epoch - 1, batch_size=2, accumulation=2, order=order)
        assert ledger == [[ROW_IDS[index] for index in step] for step in plan]
        tokens = [step.tokens for step in shelf.steps if step.epoch == epoch]
        assert tokens == [sum(backend.bench.learned[row] for row in step) for step in ledger]
    first, second = (shelf.drafts[end].row_ids for end in (3, 6))
    assert [list(step) for step in first] != [list(step) for step in second], "epochs have orders of their own"
    # A checkpoint inside an epoch holds what the epoch has received until then.
    for step, draft in shelf.drafts.items():
        whole = shelf.drafts[3 if draft.epoch == 1 else 6]
        assert [list(rows) for rows in draft.row_ids] == [list(r) for r in whole.row_ids][: draft.steps_into_epoch]
        assert [s.global_step for s in draft.steps] == list(range(3 * draft.epoch - 2, step + 1))


def test_numbers_of_an_epoch(backend: Backend) -> None:
    for end in (3, 6):
        draft = backend.undisturbed.drafts[end]
        steps = backend.undisturbed.steps[end - 3 : end]
        metrics = draft.metrics
        assert metrics["tokens"] == sum(step.tokens for step in steps)
        assert metrics["seconds"] == pytest.approx(sum(step.seconds for step in steps))
        assert metrics["tokens_per_second"] == pytest.approx(metrics["tokens"] / metrics["seconds"])
        assert min(step.loss for step in steps) <= metrics["loss"] <= max(step.loss for step in steps)
        assert (metrics["last_loss"], metrics["learning_rate"]) == (steps[-1].loss, steps[-1].learning_rate)


def test_a_state_is_safetensors_and_json(backend: Backend) -> None:
    for draft in backend.undisturbed.drafts.values():
        assert draft.state_files
        assert not set(draft.state_files) & set(draft.other_files)
        for name in [*draft.state_files, *draft.other_files]:
            assert Path(name).suffix in (".safetensors", ".json", ".jinja", ".txt", ".model"), name


# Resume.


@who(resumes_exactly)
def test_resume_from_an_epochs_end_gives_the_same_state(backend: Backend) -> None:
    _resume(backend, 3)


@who(resumes_inside_an_epoch)
@pytest.mark.parametrize("step", [2, 4])
def test_resume_from_inside_an_epoch_gives_the_same_state(backend: Backend, step: int) -> None:
    _resume(backend, step)


def _resume(backend: Backend, step: int) -> None:
    whole = backend.undisturbed
    shelf = backend.bench.shelf()
    shelf.drafts.update(whole.drafts)
    parent = whole.checkpoints[step]
    epoch = 1 if step < 3 else 2
    # Another process: a session of its own, and no checkpoint in between this time.
    (result,) = backend.bench.train(backend.bench.job(), shelf, [epoch], parent)
    end = 3 * epoch
    assert result.steps_done == end - step
    assert result.checkpoint.state_digest == whole.digests()[end]
    assert [s.global_step for s in shelf.steps] == list(range(step + 1, end + 1))
    assert [s.loss for s in shelf.steps] == [s.loss for s in whole.steps[step:end]]
    assert [list(rows) for rows in shelf.drafts[end].row_ids] == [list(rows) for rows in whole.drafts[end].row_ids]
    assert [s.global_step for s in shelf.drafts[end].steps] == list(range(end - 2, end + 1))


@who(resumes_exactly, IN_THIS_PROCESS)
def test_a_failed_report_ends_the_epoch_and_publishes_nothing(backend: Backend) -> None:
    shelf = backend.bench.shelf(fail_at=2)
    job = backend.bench.job()
    session = backend.bench.trainer.open(job)
    with pytest.raises(TakenOver):
        session.train_epoch(1, None, shelf)
    assert [step.global_step for step in shelf.steps] == [1]
    assert shelf.checkpoints == {}
    # The session is as good as new.
    shelf = backend.bench.shelf()
    session.train_epoch(1, None, shelf)
    session.close()
    assert shelf.digests() == {3: backend.undisturbed.digests()[3]}


@alone
@pytest.mark.parametrize("change", [{"seed": 1}, {"learning_rate": 1.0e-3}], ids=str)
def test_what_moves_weights_moves_the_state(backend: Backend, change: dict[str, Any]) -> None:
    shelf = backend.bench.shelf()
    backend.bench.train(backend.bench.job(**change), shelf, [1])
    assert set(shelf.digests().values()).isdisjoint(backend.undisturbed.digests().values())


@alone
def test_weights_alone_start_at_step_one(backend: Backend) -> None:
    whole = backend.undisturbed
    parent = replace(whole.checkpoints[6], restart="weights")
    shelf = backend.bench.shelf()
    (result,) = backend.bench.train(backend.bench.job(), shelf, [1], parent)
    assert [step.global_step for step in shelf.steps] == [1, 2, 3]
    assert (result.steps_done, result.checkpoint.global_step, result.checkpoint.epoch_complete) == (3, 3, True)
    assert result.checkpoint.state_digest not in whole.digests().values()
    if not backend.capabilities.simulated:
        # It goes on from what was learned, with the optimiser afresh.
        assert shelf.steps[0].loss < whole.steps[0].loss


# LoRA, export, the end.


@who(lambda can: can.lora, IN_THIS_PROCESS)
def test_an_adapter(backend: Backend, tmp_path: Path) -> None:
    lora = {"rank": 4, "alpha": 8, "dropout": 0.1}
    shelf = backend.bench.shelf()
    job = backend.bench.job(lora=lora)
    (result,) = backend.bench.train(job, shelf, [1])
    assert result.checkpoint.state_digest not in backend.undisturbed.digests().values()
    if backend.capabilities.simulated:
        return
    size = sum(path.stat().st_size for path in result.checkpoint.folder.glob("*.safetensors"))
    full = sum(path.stat().st_size for path in backend.undisturbed.checkpoints[3].folder.glob("*.safetensors"))
    assert size < full / 2, "only the adapter and its moments are kept"
    session = backend.bench.trainer.open(job)
    session.export(result.checkpoint, tmp_path / "adapter", merged=False)
    session.close()
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "adapter" / "model.safetensors").exists()


@alone
def test_export_makes_a_new_folder_that_plain_transformers_loads(backend: Backend, tmp_path: Path) -> None:
    session = backend.bench.trainer.open(backend.bench.job())
    checkpoint = backend.undisturbed.checkpoints[6]
    session.export(checkpoint, tmp_path / "model", merged=True)
    with pytest.raises(FileExistsError):
        session.export(checkpoint, tmp_path / "model", merged=True)
    session.close()
    if backend.capabilities.simulated:
        assert not list((tmp_path / "model").glob("*.safetensors"))
        return
    from safetensors.numpy import load_file

    from tests.tiny_models import load_plain

    loaded = {name: tensor.numpy() for name, tensor in load_plain(tmp_path / "model").state_dict().items()}
    stored = load_file(checkpoint.folder / "model.safetensors")
    assert loaded.keys() == stored.keys()
    assert all((loaded[name] == stored[name]).all() for name in stored)


@alone
def test_closed_twice(backend: Backend) -> None:
    import torch

    with preserved_numerics():
        # Another number than the job asks for.
        torch.set_num_threads(backend.bench.job().resolution.threads + 1)
        threads = torch.get_num_threads()
        session = backend.bench.trainer.open(backend.bench.job())
        session.close()
        session.close()
        assert torch.get_num_threads() == threads
