"""Whether a holder's process is gone: known only of processes of this host, this boot and this container."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from kitchen_resources.checkpoints import holder as holder_module
from kitchen_resources.checkpoints.holder import is_gone, is_this_process, this_holder


@pytest.fixture
def child() -> "subprocess.Popen[bytes]":
    """A process that lives until its input is closed."""
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)


def end(child: "subprocess.Popen[bytes]") -> None:
    assert child.stdin is not None
    child.stdin.close()
    child.wait()


def test_a_holder_says_who_it_is() -> None:
    one, two = this_holder("run-1"), this_holder("run-1")
    assert (one.pid, one.run) == (os.getpid(), "run-1")
    assert one.id != two.id
    assert replace(one, id=two.id) == two


def test_this_process_is_there() -> None:
    here = this_holder("")
    assert not is_gone(here)
    assert is_this_process(here)
    for other in (
        replace(here, pid=os.getppid()),
        replace(here, started=here.started - 1),
        replace(here, host="other"),
        replace(here, boot="other/" + here.boot.partition("/")[2]),
    ):
        assert not is_this_process(other)


def test_another_process_is_there_until_it_has_ended(child: "subprocess.Popen[bytes]") -> None:
    holder = replace(this_holder(""), pid=child.pid, started=holder_module._started(child.pid))
    assert not is_gone(holder)
    assert not is_this_process(holder)
    end(child)
    assert is_gone(holder)


def test_a_process_that_has_ended_and_was_not_reaped_is_gone(child: "subprocess.Popen[bytes]") -> None:
    holder = replace(this_holder(""), pid=child.pid, started=holder_module._started(child.pid))
    assert child.stdin is not None
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_gone(holder)
    child.wait()


def test_another_process_of_the_same_number_is_not_the_holder(child: "subprocess.Popen[bytes]") -> None:
    assert is_gone(replace(this_holder(""), pid=child.pid))
    end(child)


def test_a_clock_that_was_set_makes_nobody_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    holder = this_holder("")
    created = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: created(self) + 3600.0)
    assert not is_gone(holder)
    assert this_holder("").started == holder.started


def test_the_start_is_told_whatever_the_process_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = " ".join(str(number) for number in range(3, 53))
    real = Path.read_text
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda self, *a, **k: f"7 (a) b (c 1 2) {fields}\n" if self.name == "stat" else real(self, *a, **k),
    )
    assert holder_module._started(os.getpid()) == 22.0


def test_where_there_is_no_proc_the_start_is_psutils(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Path, *args: object, **kwargs: object) -> str:
        raise FileNotFoundError(str(self))

    monkeypatch.setattr(Path, "read_text", missing)
    assert holder_module._started(os.getpid()) == psutil.Process().create_time()


def test_of_another_host_nothing_is_known() -> None:
    assert not is_gone(replace(this_holder(""), host="other/1", pid=2**22 + 1))


def test_of_another_container_of_this_boot_nothing_is_known() -> None:
    here = this_holder("")
    boot = here.boot.partition("/")[0]
    assert not is_gone(replace(here, boot=f"{boot}/pid:[1]", pid=2**22 + 1))


def test_of_another_boot_it_cannot_be_known_that_a_process_is_gone() -> None:
    # A clone of this machine has its name and machine id too: taking over at once could take over a living holder.
    here = this_holder("")
    assert not is_gone(replace(here, boot=f"earlier/{here.boot.partition('/')[2]}"))


def test_a_process_that_may_not_be_looked_at_is_not_gone(
    child: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    # /proc mounted with hidepid: the processes of other users can be signalled at, but not seen.
    holder = replace(this_holder(""), pid=child.pid, started=holder_module._started(child.pid))

    def hidden(pid: int) -> psutil.Process:
        raise psutil.NoSuchProcess(pid)

    monkeypatch.setattr(psutil, "Process", hidden)
    assert not is_gone(holder)
    end(child)
    assert is_gone(holder)
