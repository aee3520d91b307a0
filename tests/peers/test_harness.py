"""Tasks of lm-evaluation-harness, the real one, as evaluations of a recipe."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import kitchen_assets as kitchen
from kitchen_resources.errors import ConfigError
from kitchen_resources.evaluation.harness import wrong_harness_options
from kitchen_resources.evaluation.scorers import wrong_options

TASKS = {
    "copying": """
task: copying
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/copying.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "writing": """
task: writing
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/copying.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[label]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
}
ROWS = [{"question": f"copy {n}:", "choices": [f" {n}", " x", " y"], "label": n % 3} for n in range(12)]


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(text.replace("FOLDER", str(folder)))
    (folder / "copying.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.setenv("KITCHEN_HARNESS_TASKS", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return folder


def _run(tmp_path: Path, *evaluations: dict[str, Any], **fields: Any) -> kitchen.RunResult:
    config = {
        "max_rows": 24,
        "held_out": "0",
        "epochs": 1,
        "batch_size": 8,
        "eval_every": 0,
        "evaluations": list(evaluations),
        **fields,
    }
    resources = {
        "blobs": {"store": {"local": {"path": str(tmp_path / "store")}}},
        "telemetry": {"console": False},
        "trainer": {"backend": {"trl": {"threads": 1}}},
    }
    (tmp_path / "dagster").mkdir(exist_ok=True)
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path / "dagster")) as instance:
        return kitchen.run("supervised", config, resources, instance=instance)


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["full", "LoRA"])
def test_a_task_measures_the_model_and_its_base(tasks: Path, tmp_path: Path, lora: dict[str, Any] | None) -> None:
    result = _run(
        tmp_path,
        {"name": "copies", "scorer": "lm_eval", "scorer_args": {"task": "copying"}},
        {
            "name": "writes",
            "scorer": "lm_eval",
            "scorer_args": {"task": "writing", "metric": "exact_match"},
            "samples": 5,
        },
        lora=lora,
    )
    measured = result.evaluation
    for name, metric, rows in (("copies", "acc", 12), ("writes", "exact_match", 5)):
        counted = measured[f"{name}/lm_eval"]
        assert counted.value == measured[f"{name}/{metric}"].value
        assert counted.n == rows
        assert 0.0 <= counted.value <= 1.0
        assert counted.base is not None


def test_what_is_wrong_is_refused_before_any_work(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert wrong_options("lm_eval", {"task": "copying"}) is None
    assert "it has copying, writing" in (wrong_harness_options({"task": "arc_easy"}) or "")
    assert "needs the option 'task'" in (wrong_harness_options({}) or "")
    assert "no option 'folder'" in (wrong_harness_options({"task": "copying", "folder": "/"}) or "")
    with pytest.raises(ConfigError, match="there is no task 'arc_easy'"):
        _run(tmp_path, {"name": "arc", "scorer": "lm_eval", "scorer_args": {"task": "arc_easy"}})
    assert not (tmp_path / "store" / "runs").exists()
    monkeypatch.delenv("KITCHEN_HARNESS_TASKS")
    assert "KITCHEN_HARNESS_TASKS isn't set" in (wrong_harness_options({"task": "copying"}) or "")
