"""docs/backends.md: what the backends say of themselves."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kitchen_resources import training
from kitchen_resources.errors import CapabilityError
from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe, RecipeDefinition
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.training.fireworks.backend import FireworksTrainer
from kitchen_resources.training.fireworks.managed import FireworksJobsTrainer
from kitchen_resources.training.local.backend import LocalTrainer
from kitchen_resources.training.modal.backend import ModalTrainer
from kitchen_resources.training.noop import NoopTrainer
from kitchen_resources.training.port import Trainer
from kitchen_resources.training.preflight import require_capable
from kitchen_resources.training.ray.backend import RayTrainer
from kitchen_resources.training.tinker.backend import TinkerTrainer
from kitchen_resources.training.trl.backend import TrlTrainer

_TRAINING = Path(training.__file__).parent

WORKS, CONTRACT, OFFERED, NOT_OFFERED = "works", "contract-tested", "offered", "not offered"


@dataclass(frozen=True)
class Shown:
    """A backend of the tables.

    Attributes:
        trainer: It.
        needs: Recipe fields without which nothing is trained there.
        mark: What a test of it proves; less where the service of the test is the tests' own.
    """

    trainer: Trainer
    needs: Mapping[str, Any]
    mark: str = WORKS


BACKENDS = {
    "trl": Shown(TrlTrainer(), {}),
    "trl, processes: 2": Shown(TrlTrainer(processes=2), {"gradient_accumulation_steps": 2}),
    "ray": Shown(RayTrainer("any", processes=2), {"gradient_accumulation_steps": 2}),
    "local": Shown(LocalTrainer(), {}),
    "tinker": Shown(TinkerTrainer("any"), {"lora": {"rank": 8}}),
    "fireworks": Shown(FireworksTrainer("any"), {"lora": {"rank": 8}}, CONTRACT),
    "fireworks_jobs": Shown(FireworksJobsTrainer("any"), {"lora": {"rank": 8}}, CONTRACT),
    "modal": Shown(ModalTrainer(), {}, CONTRACT),
    "noop": Shown(NoopTrainer(), {}),
}

_S, _P, _R, _D = SupervisedRecipe, PreferenceRecipe, ReinforcementRecipe, DistillationRecipe
Asked = tuple[type[Recipe], dict[str, Any]]

FEATURES: Mapping[str, Asked] = {
    "supervised": (_S, {}),
    "supervised, packed rows": (_S, {"packing": True}),
    "supervised, a loss of one's own": (_S, {"loss": "kitchen_resources.training.own_code:find"}),
    "supervised, stages of a step of one's own": (
        _S,
        {"batch_stages": {"optim_step": "kitchen_resources.training.loops.frame:optim_step"}},
    ),
    "preference, sigmoid loss": (_P, {}),
    "preference, other losses": (_P, {"loss_type": ["ipo"]}),
    "preference, precomputed reference": (_P, {"precompute_reference": True}),
    "reinforcement (PPO's surrogate, per token)": (_R, {"loss_type": "dapo"}),
    "reinforcement, CISPO": (_R, {"loss_type": "cispo"}),
    "reinforcement, GRPO's own normalisation": (_R, {"loss_type": "grpo"}),
    "reinforcement, top-p and top-k": (_R, {"loss_type": "dapo", "top_p": 0.9}),
    "distillation, on the teacher's answers": (_D, {"mode": "sequence"}),
    "distillation, on policy": (_D, {"mode": "on_policy"}),
    "distillation, by logits": (_D, {"mode": "logit"}),
    "LoRA": (_S, {"lora": {"rank": 8}}),
    "the whole model": (_S, {"lora": None}),
    "a frozen base in 8 or 4 bits": (_S, {"lora": {"rank": 8}, "quantization": "4bit"}),
    "checkpoints inside an epoch": (_S, {"checkpoint_steps": 5}),
    "optimisers other than AdamW": (_S, {"optimizer": "sgd"}),
    "precision as the recipe says": (_S, {"precision": "fp32"}),
}
"""What is asked for, as a recipe; a backend offers it when it refuses nothing of it."""

_BITS = "tests/workflows/test_bits.py::test_a_run_has_the_bits_of_a_plain_trl_script"
_METHOD_BITS = "tests/workflows/test_method_bits.py::test_a_run_has_the_bits_of_a_plain_trl_script"
_AGREE = "tests/contract/test_backends_agree.py::test_losses_and_gradients_are_alike_over_ten_updates"
_PREFER = "tests/contract/test_backends_agree.py::test_preferences_are_alike"
_OWN = "tests/contract/test_backends_agree.py::test_a_loss_of_ones_own_is_trained_by"
_STAGES = "tests/contract/test_backends_agree.py::test_stages_of_ones_own_take_the_places_of_the_loops"
_METHODS = "tests/contract/test_trainer_methods.py::test_a_new_session_goes_on_with_the_same_state"
_INSIDE = "tests/contract/test_trainer.py::test_resume_from_inside_an_epoch_gives_the_same_state"
_SETTINGS = "tests/unit/test_trl_settings.py::test_each_setting_resumes_with_the_bits_of_one_session"
_QUANTIZED = "tests/extras/test_quantization.py::test_a_lora_on_a_quantized_base_resumes_with_the_bits_of_one_go"
_TINKER = "tests/peers/test_tinker_runs.py::"
_SHARED = "trl, processes: 2"
_RAY = "tests/peers/test_ray.py::test_a_run_has_the_bits_of_torchrun_and_streams_its_steps"
_FIREWORKS = "tests/peers/test_fireworks_runs.py::"
_FIREWORKS_RUN = f"{_FIREWORKS}test_a_run_learns_and_what_it_made_is_like_any_other"
_JOBS = "tests/peers/test_fireworks_jobs.py::"
_JOBS_RUN = f"{_JOBS}test_a_run_is_one_job_and_what_it_made_is_like_any_other"
_RAY_KILLED = "tests/peers/test_ray.py::test_a_killed_worker_is_gone_on_from"
_MODAL = "tests/peers/test_modal.py::test_a_run_has_the_bits_of_trl_and_nothing_stays_but_what_it_made"
_ORDERED = "tests/contract/test_orders.py::test_it_has_the_bits_of_trl"
_MODAL_LOST = "tests/peers/test_modal.py::test_a_lost_machine_is_gone_on_from"
_KILLED = "tests/faults/test_torchrun.py::test_what_is_killed_is_started_again_and_the_bits_are_the_same"
_STEPS = "tests/contract/test_trainer.py::test_steps_follow_the_plan"

PROVEN: Mapping[str, Mapping[str, str]] = {
    "supervised": {
        "trl": _BITS,
        _SHARED: _KILLED,
        "ray": _RAY,
        "local": _AGREE,
        "tinker": f"{_TINKER}test_a_run_learns_and_what_it_made_is_like_any_other",
        "fireworks": _FIREWORKS_RUN,
        "fireworks_jobs": _JOBS_RUN,
        "modal": _MODAL,
    },
    "supervised, packed rows": {"trl": _BITS},
    "supervised, a loss of one's own": {
        "local": _OWN,
        "tinker": "tests/peers/test_tinker_client.py::test_a_loss_of_ones_own_has_the_gradients_of_the_named_one",
    },
    "supervised, stages of a step of one's own": {"local": _STAGES},
    "preference, sigmoid loss": {
        "trl": _METHOD_BITS,
        "local": _PREFER,
        "tinker": f"{_TINKER}test_a_preference_run",
        "fireworks": f"{_FIREWORKS}test_a_preference_run",
        "fireworks_jobs": f"{_JOBS}test_a_preference_run",
    },
    "preference, other losses": {"trl": _METHOD_BITS},
    "preference, precomputed reference": {"trl": _METHOD_BITS},
    "reinforcement (PPO's surrogate, per token)": {
        "trl": _METHOD_BITS,
        "local": _METHODS,
        "tinker": f"{_TINKER}test_reinforcement_on_samples_of_the_service",
    },
    "distillation, on the teacher's answers": {"trl": _METHOD_BITS},
    "distillation, on policy": {
        "trl": _METHOD_BITS,
        "local": _METHODS,
        "tinker": f"{_TINKER}test_distillation_on_policy_with_a_teacher_on_this_machine",
    },
    "distillation, by logits": {"trl": _METHOD_BITS},
    "LoRA": {
        "trl": _BITS,
        _SHARED: _KILLED,
        "local": _AGREE,
        "tinker": f"{_TINKER}test_a_run_learns_and_what_it_made_is_like_any_other",
        "fireworks": _FIREWORKS_RUN,
        "fireworks_jobs": _JOBS_RUN,
        "modal": _MODAL,
    },
    "the whole model": {"trl": _BITS, _SHARED: _STEPS, "ray": _RAY, "local": _AGREE, "modal": _ORDERED},
    "a frozen base in 8 or 4 bits": {"trl": _QUANTIZED},
    "checkpoints inside an epoch": {
        "trl": _INSIDE,
        _SHARED: _KILLED,
        "ray": _RAY_KILLED,
        "local": _INSIDE,
        "tinker": f"{_TINKER}test_a_killed_run_goes_on_from_its_last_checkpoint",
        "fireworks": f"{_FIREWORKS}test_a_killed_run_goes_on_from_its_last_checkpoint",
        "modal": _MODAL_LOST,
    },
    "optimisers other than AdamW": {"trl": _SETTINGS},
    "precision as the recipe says": {"trl": _SETTINGS},
}
"""By feature and backend, the test that trains so and looks at values."""

_OWN_CODE: Mapping[str, tuple[str, ...]] = {
    "trl": ("trl", "worker"),
    "ray": ("ray",),
    "local": ("local",),
    "tinker": ("tinker",),
    "fireworks": ("fireworks/account.py", "fireworks/backend.py", "fireworks/config.py", "fireworks/service.py"),
    "fireworks_jobs": ("fireworks/jobs.py", "fireworks/managed.py"),
    "modal": ("modal",),
    "noop": ("noop.py",),
}
"""What of `kitchen_resources/training/` each backend has to itself."""

_SHARED_CODE: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "the loops by primitives": ("local, tinker, fireworks", ("loops",)),
    "a service of primitives": ("tinker, fireworks", ("remote",)),
    "orders through the store": ("modal", ("orders",)),
    "a service that trains on its own": ("fireworks_jobs", ("hosted",)),
}
"""What several share, or the next of their kind would."""

_RESUME = {"exact": "the same bits", "state": "weights and moments, by a probe's loss", "none": "no"}


def render(template: str) -> str:
    """The whole page, from its template."""
    return template.replace("{{ features }}", "\n".join(_table())).replace("{{ lines }}", "\n".join(_lines()))


def offered(shown: Shown, asked: Asked) -> bool:
    """Whether a backend refuses nothing of a recipe."""
    method, values = asked
    values = {**shown.needs, **values}
    if "lora" in shown.needs and values["lora"] is not None:
        values["lora"] = {**shown.needs["lora"], **values["lora"]}
    loss, stages = values.pop("loss", ""), values.pop("batch_stages", {})
    given = {"model": "any", "dataset": "any", "teacher": "any"}
    known = {name: value for name, value in {**given, **values}.items() if name in method.model_fields}
    recipe = bind(method, known, RecipeDefinition(name="asked", loss=loss, batch_stages=stages))
    try:
        require_capable(recipe, shown.trainer.capabilities())
    except CapabilityError:
        return False
    return not shown.trainer.check(recipe)


def _table() -> Iterator[str]:
    yield "| | " + " | ".join(f"`{name}`" for name in BACKENDS) + " |"
    yield "|---" * (len(BACKENDS) + 1) + "|"
    for name, asked in FEATURES.items():
        proven = PROVEN.get(name, {})
        marks = (_mark(shown, asked, proven=backend in proven) for backend, shown in BACKENDS.items())
        yield f"| {name} | " + " | ".join(marks) + " |"
    resumes = (_RESUME[shown.trainer.capabilities().resume] for shown in BACKENDS.values())
    yield "| what a resume gives back | " + " | ".join(resumes) + " |"


def _lines() -> Iterator[str]:
    """What each backend is to write and to keep up."""
    yield "| | lines | in `kitchen_resources/training/` |"
    yield "|---|---|---|"
    for name, parts in _OWN_CODE.items():
        yield f"| `{name}` | {_counted(parts)} | {', '.join(f'`{part}`' for part in parts)} |"
    for what, (users, parts) in _SHARED_CODE.items():
        named = ", ".join(f"`{user}`" for user in users.split(", "))
        yield f"| {what} ({named}) | {_counted(parts)} | {', '.join(f'`{part}`' for part in parts)} |"


def _counted(parts: Sequence[str]) -> int:
    """Lines that aren't empty, to the nearest ten."""
    found = [
        path
        for part in parts
        for path in ([_TRAINING / part] if part.endswith(".py") else (_TRAINING / part).glob("*.py"))
    ]
    return round(sum(bool(line.strip()) for path in found for line in path.read_text().splitlines()), -1)


def _mark(shown: Shown, asked: Asked, *, proven: bool) -> str:
    if not offered(shown, asked):
        return NOT_OFFERED
    if shown.trainer.capabilities().simulated:
        return "simulated"
    return shown.mark if proven else OFFERED
