"""Tasks of lm-evaluation-harness as evaluations, from local task files; no other module imports it.

A task file is code: it may name Python functions. So the folder of tasks is the location's (`KITCHEN_HARNESS_TASKS`), and
a launch can only name a task in it.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kitchen_resources.digests import digest_file, digest_json
from kitchen_resources.errors import CapabilityError, ConfigError, EvaluationError
from kitchen_resources.evaluation.port import EvaluationResult, LoadedModel, Measure
from kitchen_resources.recipes.blocks import HARNESS

FOLDER_VARIABLE = "KITCHEN_HARNESS_TASKS"

_OPTIONS = ("task", "metric", "num_fewshot", "chat_template")
_Z95 = 1.959964
_SHOWN = 20


@dataclass(frozen=True)
class HarnessTask:
    """A task of the harness.

    Attributes:
        name: Prefix of its metrics.
        task: Its name in the folder of tasks.
        folder: The folder.
        metric: The metric that counts, which is reported as `<name>/lm_eval`; all others under their own names.
        num_fewshot: Examples before each question; None for what the task's file says.
        chat_template: Whether questions are turns of a conversation.
        limit: At most so many rows; None for all.
        batch_size: Rows at a time.
    """

    name: str
    task: str
    folder: Path
    metric: str
    num_fewshot: int | None
    chat_template: bool
    limit: int | None
    batch_size: int

    def spec(self) -> dict[str, Any]:
        """See `Task.spec`; the digest is that of all files in the folder, as tasks may include each other."""
        import importlib.metadata

        files = {
            path.relative_to(self.folder).as_posix(): digest_file(path)
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts
        }
        return {
            "name": self.name,
            "harness": importlib.metadata.version("lm_eval"),
            "task": self.task,
            "files": digest_json(files),
            "metric": self.metric,
            "num_fewshot": self.num_fewshot,
            "chat_template": self.chat_template,
            "limit": self.limit,
        }

    def measure(self, model: LoadedModel) -> EvaluationResult:
        """See `Task.measure`."""
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        network = model.model
        # The layers of an adapter stay where they are; only peft's wrapper is taken off, which the harness doesn't know.
        network = network.get_base_model() if hasattr(network, "peft_config") else network
        try:
            found = simple_evaluate(
                model=HFLM(pretrained=network, tokenizer=model.tokenizer, batch_size=self.batch_size),
                tasks=[self.task],
                task_manager=TaskManager(include_path=str(self.folder), include_defaults=False),
                num_fewshot=self.num_fewshot,
                apply_chat_template=self.chat_template,
                limit=self.limit,
                bootstrap_iters=0,
                confirm_run_unsafe_code=False,
            )
        except (KeyError, ValueError, OSError) as error:
            raise EvaluationError(
                f"the harness can't run {self.task}: {type(error).__name__}: {error}",
                where=f"evaluation {self.name}",
                fix=f"try it by hand: lm_eval run --tasks {self.task} --include_path {self.folder}",
            ) from error
        return self._result(found)

    def _result(self, found: Mapping[str, Any]) -> EvaluationResult:
        """Measures and samples of what the harness returns."""
        rows = int(found["n-samples"][self.task]["effective"])
        values = found["results"][self.task]
        measures: dict[str, Measure] = {}
        for key, value in values.items():
            metric, _, filtered = key.partition(",")
            if metric.endswith("_stderr") or not isinstance(value, int | float) or isinstance(value, bool):
                continue
            error = values.get(f"{metric}_stderr,{filtered}")
            half = _Z95 * error if isinstance(error, int | float) and math.isfinite(error) else math.nan
            measures[f"{self.name}/{metric}"] = Measure(float(value), rows, value - half, value + half)
        chosen = measures.get(f"{self.name}/{self.metric}")
        if chosen is None:
            names = ", ".join(sorted(name.partition("/")[2] for name in measures)) or "none"
            raise EvaluationError(
                f"the task {self.task} has no metric {self.metric!r}; it has {names}",
                where=f"evaluation {self.name}",
                fix="name one of them as scorer_args.metric",
            )
        samples = [
            {
                "evaluation": self.name,
                "where": f"row {sample['doc_id']}",
                "prompt": str(sample["arguments"]["gen_args_0"]["arg_0"])
                if isinstance(sample["arguments"], Mapping)
                else str(sample["arguments"][0][0]),
                "expected": str(sample["target"]),
                "answer": str(sample["filtered_resps"]),
                "score": float(sample[self.metric]) if isinstance(sample.get(self.metric), int | float) else None,
            }
            for sample in found.get("samples", {}).get(self.task, [])[:_SHOWN]
        ]
        return EvaluationResult({**measures, f"{self.name}/{HARNESS}": chosen}, samples)


def harness_task(name: str, options: Mapping[str, Any], *, limit: int | None, batch_size: int) -> HarnessTask:
    """The task that an evaluation asks for.

    Raises:
        ConfigError: There are no tasks in this location.
    """
    return HarnessTask(
        name=name,
        task=options["task"],
        folder=_folder(),
        metric=options.get("metric", "acc"),
        num_fewshot=options.get("num_fewshot"),
        chat_template=options.get("chat_template", False),
        limit=limit,
        batch_size=batch_size,
    )


def wrong_harness_options(options: Mapping[str, Any]) -> str | None:
    """What is wrong with an evaluation that asks for the harness, or None; nothing is run."""
    unknown = [option for option in options if option not in _OPTIONS]
    if unknown:
        return f"{HARNESS} has no option {unknown[0]!r}; it has {', '.join(_OPTIONS)}"
    if not isinstance(options.get("task"), str):
        return f"{HARNESS} needs the option 'task'"
    try:
        known = _known_tasks(_folder())
    except (ConfigError, CapabilityError) as error:
        return f"{error.what}; {error.fix}"
    if options["task"] not in known:
        return f"there is no task {options['task']!r} in {FOLDER_VARIABLE}; it has {', '.join(known) or 'none'}"
    return None


def _known_tasks(folder: Path) -> list[str]:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise CapabilityError(
            "lm-evaluation-harness isn't installed",
            where=f"scorer {HARNESS}",
            fix="pip install 'crucible-kitchen[harness]'",
        ) from error
    return sorted(TaskManager(include_path=str(folder), include_defaults=False).all_tasks)


def _folder() -> Path:
    named = os.environ.get(FOLDER_VARIABLE, "")
    if not named or not Path(named).is_dir():
        raise ConfigError(
            f"{named} is no folder" if named else f"{FOLDER_VARIABLE} isn't set",
            where=f"scorer {HARNESS}",
            fix=f"export {FOLDER_VARIABLE}=FOLDER (of the harness's task files) where the code location starts",
        )
    return Path(named)
