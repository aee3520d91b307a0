"""Stages of data sets: the raw rows, and the rows prepared for training."""

from itertools import islice
from typing import Any

import dagster as dg

from kitchen_assets.composition import CheckOutcome, StageResult, stage
from kitchen_assets.context import StageContext
from kitchen_assets.tables import markdown_table
from kitchen_assets.tags import REFUSED
from kitchen_resources.datasets.prepare import RawSplits
from kitchen_resources.datasets.report import ALL_KINDS, Finding, RowReport
from kitchen_resources.datasets.schemas import column_schema
from kitchen_resources.digests import digest_json
from kitchen_resources.errors import DataError
from kitchen_resources.training.method_events import dataset_events

_PREVIEW = 5

ROW_CHECKS = tuple(f"rows_{kind}" for kind in ALL_KINDS)


@stage(group="datasets", kinds=("huggingface", "json"), reads_models=False)
def raw(kitchen: StageContext) -> StageResult:
    """The rows as they are, before any change: every one can be read, and they are known by their digest."""
    splits = kitchen.launch.raw
    described = splits.describe()
    counts, preview = _read_all(splits)
    for name, raw_set in described.items():
        kitchen.launch.ports.telemetry.emit(
            "dataset.load",
            {"rows": counts[name]},
            {"recipe": kitchen.name, "dataset": raw_set["reference"], "digest": raw_set["digest"]},
        )
    return StageResult(
        data_version=splits.digest,
        metadata={
            "dagster/row_count": sum(counts.values()),
            "rows": dg.MetadataValue.json(counts),
            "sources": dg.MetadataValue.json(described),
            "preview": dg.MetadataValue.md(markdown_table(preview)),
        },
    )


@stage(group="datasets", kinds=("pandera", "parquet"), checks=ROW_CHECKS)
def dataset(kitchen: StageContext) -> StageResult:
    """The rows to train on: validated, split, rendered by the model's chat template into tokens and loss weights.

    Blocking checks stop training when more rows are defective than the recipe accepts.
    """
    prepared, report = kitchen.launch.prepare()
    exceeded = report.exceeded(kitchen.recipe.row_limits)
    if exceeded:
        kitchen.tag({REFUSED: DataError.__name__})
    for said in exceeded.values():
        kitchen.warn(said)
    held_out = prepared.held_out
    kitchen.launch.ports.telemetry.emit(
        "dataset.prepared",
        {
            "rows": prepared.train.rows,
            "held_out_rows": held_out.rows if held_out else 0,
            "tokens": prepared.train.tokens,
            "trained_tokens": prepared.train.trained_tokens,
        },
        {"recipe": kitchen.name, "digest": prepared.trained.digest},
    )
    for event in dataset_events(kitchen.recipe, prepared.trained.rows, prepared.trained.digest):
        kitchen.launch.ports.telemetry.emit(*event)
    return StageResult(
        data_version=digest_json([prepared.trained.digest, held_out.digest if held_out else None]),
        metadata={
            "dagster/row_count": prepared.train.rows,
            "dagster/column_schema": _schema(report.shape),
            "digest": prepared.trained.digest,
            "held_out_rows": held_out.rows if held_out else 0,
            "tokens": prepared.train.tokens,
            "trained_tokens": prepared.train.trained_tokens,
            "sequences": prepared.trained.rows,
            "longest_row_tokens": report.longest,
            "lengths": dg.MetadataValue.md(_lengths(report)),
            "row_report": dg.MetadataValue.md(_report(report)),
            "samples": dg.MetadataValue.md(markdown_table(report.samples)),
            **({"pairs": dg.MetadataValue.json(dict(report.pairs))} if report.pairs else {}),
            "rendering": dg.MetadataValue.json(dict(prepared.rendering)),
            "files": dg.MetadataValue.json(
                {
                    name: f"{kitchen.launch.ports.blobs.uri}/blobs/sha256/{split.blob}"
                    for name, split in (("train", prepared.train), ("held_out", held_out), ("packs", prepared.packs))
                    if split is not None
                }
            ),
        },
        checks=[_outcome(kind, report, exceeded) for kind in ALL_KINDS],
    )


def _read_all(splits: RawSplits) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Rows of each raw set, all of them read once, and the first few to look at."""
    counts: dict[str, int] = {}
    preview: list[dict[str, Any]] = []
    for name, raw_set in (("train", splits.train), ("held_out", splits.held_out)):
        if raw_set is None:
            continue
        rows = raw_set.rows()
        first = list(islice(rows, _PREVIEW))
        if name == "train":
            preview = [{"row": row.row_id, "where": row.where, **row.value} for row in first]
        counts[name] = len(first) + sum(1 for _ in rows)
    return counts, preview


def _outcome(kind: str, report: RowReport, exceeded: dict[str, str]) -> CheckOutcome:
    finding = report.findings[kind]
    examples = [{"row": row_id, "where": where, "reason": reason} for row_id, where, reason in finding.examples]
    return CheckOutcome(
        name=f"rows_{kind}",
        passed=kind not in exceeded,
        description=exceeded.get(kind) or f"{_found(finding)}: {ALL_KINDS[kind]}",
        metadata={
            "rows": finding.count,
            # Not of nothing: what wasn't looked at isn't zero.
            **({"share": finding.share} if finding.of else {}),
            "examples": dg.MetadataValue.md(markdown_table(examples) if examples else "none"),
        },
    )


def _found(finding: Finding) -> str:
    """How many rows of how many."""
    return f"{finding.count} of {finding.of} rows" if finding.of else "nothing to look at"


def _schema(shape: str) -> dg.TableSchema:
    columns = [
        dg.TableColumn(
            name=name, type=kind, constraints=dg.TableColumnConstraints(other=[text for text in constraints if text])
        )
        for name, kind, constraints in column_schema(shape)
    ]
    return dg.TableSchema(columns=columns)


def _lengths(report: RowReport) -> str:
    rows = [{"tokens up to": bound, "rows": count} for bound, count in sorted(report.lengths.items())]
    return markdown_table(rows)


def _report(report: RowReport) -> str:
    rows = [
        {
            "finding": kind,
            "rows": _found(finding),
            "share": f"{finding.share:.2%}" if finding.of else "",
            "what": ALL_KINDS[kind],
        }
        for kind, finding in report.findings.items()
    ]
    return markdown_table(rows)
