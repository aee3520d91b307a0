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
        started=psutil.Process().create_time(),
        run=run,
    )


def is_gone(holder: Holder) -> bool:
    """Whether the holder's process is known to be gone. False when it can't be known: another host or boot."""
    if holder.host != _host():
        return False
    if holder.boot != _boot():
        # The same host after a reboot: nothing of before lives. Another container on it: can't be known.
        return holder.boot.split("/")[0] != _boot().split("/")[0]
    try:
        process = psutil.Process(holder.pid)
        return bool(process.create_time() != holder.started or process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
