"""The row report: what it counts, what it refuses, and that it comes back as it was stored."""

import json

import pytest

from kitchen_resources.datasets.report import ALL_KINDS, KINDS, Finding, RowReport, report_from_json
from kitchen_resources.digests import canonical_json
from kitchen_resources.errors import DataError
from kitchen_resources.recipes.blocks import RowLimits


def report_of(kind: str, count: int, of: int) -> RowReport:
    report = RowReport()
    finding = report.findings[kind]
    finding.of = of
    for index in range(count):
        finding.add(index, f"rows.jsonl:{index + 1}", f"reason {index}")
    return report


def test_the_kinds_are_those_that_a_recipe_limits() -> None:
    assert list(ALL_KINDS) == list(RowLimits.model_fields)
    assert list(RowReport().findings) == list(KINDS)


def test_a_finding_keeps_the_first_rows_and_counts_all() -> None:
    finding = report_of("invalid", 25, 100).findings["invalid"]
    assert (finding.count, finding.share) == (25, 0.25)
    assert finding.examples == [(index, f"rows.jsonl:{index + 1}", f"reason {index}") for index in range(20)]
    assert Finding("invalid").share == 0.0


def test_two_reports_share_nothing() -> None:
    one, two = RowReport(), RowReport()
    one.findings["invalid"].add(1, "a", "b")
    one.count_length(3)
    one.samples.append({})
    assert two == RowReport()
    assert one != two


@pytest.mark.parametrize(
    ("tokens", "bound"), [(0, 1), (1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (8, 8), (9, 16), (1024, 1024), (1025, 2048)]
)
def test_lengths_are_counted_by_powers_of_two(tokens: int, bound: int) -> None:
    report = RowReport()
    report.count_length(tokens)
    assert (report.lengths, report.longest) == ({bound: 1}, tokens)


def test_the_longest_row_is_kept() -> None:
    report = RowReport()
    for tokens in (3, 9, 4, 4):
        report.count_length(tokens)
    assert (report.lengths, report.longest) == ({4: 3, 16: 1}, 9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("count", "limit", "refused"),
    [(2, 0.01, True), (2, 0.02, False), (2, 0.03, False), (1, 0.0, True), (0, 0.0, False)],
)
def test_a_share_above_the_limit_is_refused(kind: str, count: int, limit: float, refused: bool) -> None:
    limits = RowLimits(**{**dict.fromkeys(KINDS, 0.0), kind: limit})
    assert list(report_of(kind, count, 100).exceeded(limits)) == ([kind] if refused else [])


def test_a_refusal_names_kind_share_limit_and_the_first_rows() -> None:
    report = report_of("invalid", 4, 1000)
    limits = RowLimits(invalid=0.0005)
    said = (
        "4 of 1000 rows (0.40%, limit 0.05%): wrong type, role or shape; not trained on. "
        "row 0 (rows.jsonl:1): reason 0; row 1 (rows.jsonl:2): reason 1; row 2 (rows.jsonl:3): reason 2"
    )
    assert report.exceeded(limits) == {"invalid": said}
    with pytest.raises(DataError) as refused:
        report.require(limits, "dataset rows.jsonl")
    assert str(refused.value) == (
        f"dataset rows.jsonl: invalid: {said}\n  fix: correct those rows, or accept them: row_limits: {{invalid: SHARE}}"
    )
    report.require(RowLimits(invalid=0.004), "dataset rows.jsonl")


def test_all_that_is_exceeded_is_said_at_once() -> None:
    report = report_of("overlap", 1, 10)
    report.findings["truncated"] = report_of("truncated", 9, 10).findings["truncated"]
    report.findings["duplicates"] = report_of("duplicates", 5, 10).findings["duplicates"]
    with pytest.raises(DataError) as refused:
        report.require(RowLimits(), "d")
    assert refused.value.what == (
        "truncated: 9 of 10 rows (90.00%, limit 10.00%): longer than max_length, cut. row 0 (rows.jsonl:1): reason 0; "
        "row 1 (rows.jsonl:2): reason 1; row 2 (rows.jsonl:3): reason 2\n"
        "overlap: 1 of 10 rows (10.00%, limit 0.00%): a held-out row whose prompt is also trained on. "
        "row 0 (rows.jsonl:1): reason 0"
    )
    assert refused.value.fix == "correct those rows, or accept them: row_limits: {truncated: SHARE}"


def test_by_default_defects_are_refused_and_some_cutting_is_not() -> None:
    assert RowLimits().model_dump() == {
        **{"invalid": 0.0, "untrained": 0.0, "truncated": 0.1, "duplicates": 0.5, "overlap": 0.0},
        **{"near_duplicates": 0.5, "contaminated": 0.0, "template_drift": 0.0},
    }


def test_a_report_comes_back_as_it_was_stored() -> None:
    report = report_of("duplicates", 25, 100)
    report.shape, report.rows_read, report.rows_trained, report.rows_held_out = "messages", 100, 80, 20
    report.tokens, report.trained_tokens, report.cut_tokens = 5000, 700, 9
    for tokens in (3, 70, 5):
        report.count_length(tokens)
    report.samples.append({"row_id": 3, "text": "größe", "learned": "A…B"})
    stored = json.loads(canonical_json(report.as_json()))
    assert stored["lengths"] == {"4": 1, "8": 1, "128": 1}
    assert stored["findings"]["duplicates"]["examples"][1] == [1, "rows.jsonl:2", "reason 1"]
    back = report_from_json(stored)
    assert back == report
    assert back.exceeded(RowLimits(duplicates=0.2)) == report.exceeded(RowLimits(duplicates=0.2)) != {}
