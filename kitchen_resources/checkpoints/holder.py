"""Who holds a lease: this process, and whether another one on this host is still alive."""

import os
import socket
import uuid
from functools import lru_cache
from pathlib import Path

import psutil

from kitchen_resources.checkpoints.head import Holder


@lru_cache(maxsize=1)
def _host() -> str:
    """This host, also told apart from a container that has its name: name and machine id."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            return f"{socket.gethostname()}/{Path(path).read_text().strip()}"
        except OSError:
            continue
    return f"{socket.gethostname()}/{uuid.getnode():x}"


@lru_cache(maxsize=1)
def _boot() -> str:
    """This boot of the host and this process namespace: a process id means the same only within both."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{psutil.boot_time():.0f}"


def this_holder(run: str) -> Holder:
    """A new holder in this process.

    Args:
        run: Dagster run, or whatever else names the work, for messages.
    """
    return Holder(
        id=uuid.uuid4().hex,
        host=_host(),
        boot=_boot(),
        pid=os.getpid(),
        started=_started(os.getpid()),
        run=run,
    )


def is_this_process(holder: Holder) -> bool:
    """Whether the holder is, or was, in this process."""
    here = (_host(), _boot(), os.getpid(), _started(os.getpid()))
    return (holder.host, holder.boot, holder.pid, holder.started) == here


def is_gone(holder: Holder) -> bool:
    """Whether the holder's process is known to be gone. False when it can't be known: another host or container."""
    if holder.host != _host():
        return False
    if holder.boot != _boot():
        # Another container on this host, a clone of this machine, or this one before a reboot: it can't be known, and
        # the lease runs out by itself.
        return False
    try:
        return _started(holder.pid) != holder.started or psutil.Process(holder.pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return not psutil.pid_exists(holder.pid)


def has_rebooted(holder: Holder) -> bool:
    """Whether the holder was on this host before its last start.

    Not part of `is_gone`: a clone of this machine that still runs would look the same, and a lease that was taken over
    costs its holder the work since its last checkpoint.
    """
    return holder.host == _host() and holder.boot.partition("/")[0] != _boot().partition("/")[0]


def _started(pid: int) -> float:
    """When a process of this host started: on Linux in clock ticks since boot, elsewhere in seconds since 1970.

    Not psutil's time on Linux: it moves when the clock is set, and a living holder would look like another process.

    Raises:
        psutil.NoSuchProcess: There is none of this number.
    """
    created = psutil.Process(pid).create_time()
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return created
    # The name, in parentheses, may itself hold spaces and parentheses; the start is the 20th field after it.
    return float(stat.rpartition(")")[2].split()[19])
