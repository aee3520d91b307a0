"""State of every kind comes back: each setting that has some, trained in one session and in one session an epoch."""

from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.training.trl.backend import TrlTrainer
from tests.training_bench import Bench, TakenOver

pytestmark = [pytest.mark.heavy, pytest.mark.full]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(TrlTrainer(device="cpu", threads=1), tmp_path_factory.mktemp("settings"))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"gradient_checkpointing": True}, marks=pytest.mark.full),
        pytest.param({"optimizer": "adafactor"}, marks=pytest.mark.full),
        pytest.param({"optimizer": "sgd"}, marks=pytest.mark.full),
        pytest.param({"attention": "eager"}, marks=pytest.mark.full),
        pytest.param({"trainer_args": {"neftune_noise_alpha": 5.0}}, marks=pytest.mark.full),
        {"precision": "bf16"},
        {"lora": {"rank": 4, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"], "rslora": True}},
        {"lr_schedule": "polynomial", "lr_power": 2.0, "lr_final": 1.0e-4, "warmup_steps": 2},
    ],
    ids=lambda change: "-".join(change),
)
def test_each_setting_resumes_with_the_bits_of_one_session(bench: Bench, change: dict[str, Any]) -> None:
    whole = bench.shelf()
    bench.train(bench.job(**change), whole)

    split = bench.shelf()
    (first,) = bench.train(bench.job(**change), split, [1])
    bench.train(bench.job(**change), split, [2], first.checkpoint)
    assert split.digests() == whole.digests()
    assert [step.loss for step in split.steps] == [step.loss for step in whole.steps]
    assert len(whole.steps) == 6


def test_the_control_without_its_optimizer_state_an_epoch_differs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kitchen_resources.training.trl import resume, session

    whole = bench.shelf()
    bench.train(bench.job(), whole)

    def forgetful(*args: Any, **kwargs: Any) -> Path:
        folder = resume.write_resume_folder(*args, **kwargs)
        (folder / "optimizer.pt").unlink()
        return folder

    monkeypatch.setattr(session, "write_resume_folder", forgetful)
    shelf = bench.shelf()
    (first,) = bench.train(bench.job(), shelf, [1])
    bench.train(bench.job(), shelf, [2], first.checkpoint)
    assert shelf.digests()[3] == whole.digests()[3]
    assert shelf.digests()[6] != whole.digests()[6]


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Weak references to the models that are loaded; none may live when another is."""
    import weakref

    from kitchen_resources.training.trl import session

    loaded: list[Any] = []
    real = session.load_for_training

    def load(*args: Any) -> Any:
        assert [model() for model in loaded if model() is not None] == []
        model = real(*args)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(session, "load_for_training", load)
    return loaded


def test_one_model_at_a_time_is_in_memory(bench: Bench, models: list[Any]) -> None:
    bench.train(bench.job(), bench.shelf())
    assert [model() for model in models] == [None, None]


def test_the_model_of_a_failed_epoch_is_gone_when_the_next_is_loaded(bench: Bench, models: list[Any]) -> None:
    with pytest.raises(TakenOver):
        bench.train(bench.job(), bench.shelf(fail_at=2))
    bench.train(bench.job(), bench.shelf())
    assert [model() for model in models] == [None, None, None]
