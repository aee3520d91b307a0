"""A recipe's schedule: off until a person switches it on."""

import pytest
from playwright.sync_api import expect

from tests.ui.dagster_dev import DagsterDev, wait_until
from tests.ui.graphql_door import REPOSITORY
from tests.ui.screen import RUN_S, Screen

pytestmark = [pytest.mark.heavy, pytest.mark.full]

_SCHEDULE = """
query ($selector: ScheduleSelector!) { scheduleOrError(scheduleSelector: $selector) { ... on Schedule {
  cronSchedule executionTimezone pipelineName defaultStatus scheduleState { status } } } }
"""


def _status(dev: DagsterDev) -> str:
    answer = dev.graphql.ask(_SCHEDULE, selector={**REPOSITORY, "scheduleName": "tiny_schedule"})["scheduleOrError"]
    status = answer.pop("scheduleState")["status"]
    assert answer == {
        "cronSchedule": "0 3 * * *",
        "executionTimezone": "Europe/Berlin",
        "pipelineName": "tiny",
        "defaultStatus": "STOPPED",
    }
    return str(status)


def test_the_schedule_is_off_until_it_is_switched_on(screen: Screen) -> None:
    dev = screen.dev
    assert _status(dev) == "STOPPED"
    screen.open("locations/kitchen/schedules/tiny_schedule")
    expect(screen.page.get_by_text("Launches tiny at 0 3 * * * (Europe/Berlin).")).to_be_visible()
    switch = screen.page.get_by_role("checkbox")
    expect(switch).not_to_be_checked()
    screen.shoot("schedule-1-off")
    for status in ("RUNNING", "STOPPED"):
        # The box itself is hidden under the picture of a switch.
        switch.focus()
        screen.page.keyboard.press("Space")
        wait_until(lambda status=status: _status(dev) == status, 30, status)  # type: ignore[misc]
        expect(switch).to_be_checked(checked=status == "RUNNING")
        screen.shoot(f"schedule-2-{status.lower()}")


def test_a_schedule_that_is_switched_on_launches_its_recipe(screen: Screen) -> None:
    dev = screen.dev
    screen.open("locations/kitchen/schedules/often_schedule")
    switch = screen.page.get_by_role("checkbox")
    switch.focus()
    screen.page.keyboard.press("Space")
    wait_until(lambda: bool(dev.graphql.runs_of("often")), RUN_S, "a run by the schedule")
    switch.focus()
    screen.page.keyboard.press("Space")
    expect(switch).not_to_be_checked()
    expect(screen.page.get_by_text("Requested", exact=False).first).to_be_visible()
    screen.shoot("schedule-3-ticked")
    runs = dev.graphql.runs_of("often")
    wait_until(lambda: dev.graphql.is_over(runs[-1]), RUN_S, f"run {runs[-1]}")
    run = dev.graphql.run(runs[-1])
    assert (run["status"], run["tags"]["dagster/schedule_name"]) == ("SUCCESS", "often_schedule")
    assert dev.registry.get("often", dev.registry.alias("often", "candidate") or 0).step == 9
    screen.open(f"runs/{runs[-1]}")
    expect(screen.page.get_by_text("often_schedule").first).to_be_visible()
    screen.shoot("schedule-4-run")
