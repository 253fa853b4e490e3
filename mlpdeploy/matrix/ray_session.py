"""Ray itself: connected to or started on this machine, and left as it was found; it reports nothing to anybody."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpdeploy.engine.host import cores
from mlpdeploy.errors import InputError, MachineLacks
from mlpdeploy.system.leftovers import workplace
from mlpdeploy.system.streams import aside

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
"""What Ray reads when it is imported: it reports nothing, and starts workers as any other program does."""
OWN = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
"""The same of a cluster that begins and ends with the run: a job that names no GPU may see this machine's; it listens
on the loopback alone, as Ray does elsewhere than on Linux; and nobody else on the machine may send work. Without a
token of its own Ray would write one into the user's home."""
LONGEST = 36
"""Characters of a temporary folder: the path of a socket, which is in it, may have no more than 107."""
PATIENCE = 5.0
"""Seconds in which a cluster's head has to answer."""


@contextmanager
def connected(address: str | None, cpus: int | None = None) -> Iterator[Session]:
    """Ray, connected to the cluster at an address, or to one of this machine that ends with the body.

    Raises MachineLacks where Ray is not installed, or no cluster answers; InputError for an address that is none.
    """
    require(address)
    for name, value in (QUIET | OWN if address is None else QUIET).items():
        os.environ.setdefault(name, value)
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    with contextlib.ExitStack() as stack:
        how = {"address": address} if address is not None else _here(stack.enter_context(workplace()), cpus or cores())
        stack.enter_context(aside())  # Ray prints there which workers died
        session = stack.enter_context(_deferred(ray))
        stack.callback(ray.shutdown)
        try:
            ray.init(**how, log_to_driver=False, configure_logging=False)
        except SystemExit as error:  # Ray's own answer to SIGTERM
            session.came.append(signal.SIGTERM)
            session.check()
            raise MachineLacks("--on ray: Ray ended this process as it began") from error
        except Exception as error:
            where = "on this machine" if address is None else f"at {address}"
            reason = " ".join(str(error).split())[:300]
            raise MachineLacks(f"--on ray: Ray cannot be used {where} ({reason})") from error
        session.take()
        yield session


def _here(folder: Path, cpus: int) -> dict[str, Any]:
    """A cluster of this machine alone, which nobody else can reach."""
    if len(str(folder)) > LONGEST:
        raise InputError(f"{folder}: too long a path for Ray's sockets: set TMPDIR to a shorter one, such as /tmp")
    return {"address": "local", "num_cpus": cpus, "include_dashboard": False, "_temp_dir": str(folder)}


def require(address: str | None) -> None:
    """Raise what `connected` raises, as far as it can be known without connecting: Ray would try for minutes."""
    if address is not None and address != "auto":
        host, _, port = address.rpartition(":")
        if "://" in address or not port.isdigit() or not host:
            raise InputError(
                f"--address {address}: give HOST:PORT as `ray start` says it, or auto, on a machine of the cluster"
            )
    try:
        found = importlib.util.find_spec("ray")
    except ValueError:  # of a module that was taken away
        found = None
    if found is None:
        raise MachineLacks("--on ray needs Ray, which is not installed: pip install 'mlpdeploy[ray]'")
    if address is not None and address != "auto":
        try:
            socket.create_connection((host, int(port)), PATIENCE).close()
        except (OSError, OverflowError) as error:
            raise MachineLacks(f"--address {address}: no Ray cluster answers there ({error})") from error


@dataclass(frozen=True)
class Session:
    """Ray's module while it is connected. Signals that ask this process to end wait until `check` raises what they do:
    an exception that they raise within Ray's own code gets lost there."""

    ray: Any
    came: list[int]
    before: Mapping[int, Any]

    def take(self) -> None:
        """Take the signals, which Ray takes too when it begins."""
        for number in self.before:
            signal.signal(number, lambda number, frame: self.came.append(number))

    def check(self) -> None:
        """Raise what a signal that came meanwhile does."""
        if self.came:
            number = self.came[0]
            self.came.clear()
            self.before[number](number, None)


@contextmanager
def _deferred(ray: Any) -> Iterator[Session]:
    """Take the signals that are handled here, and give them back; one that came is then answered."""
    here = threading.current_thread() is threading.main_thread()
    known = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in known if here}
    before = {number: handler for number, handler in before.items() if callable(handler)}
    session = Session(ray, [], before)
    session.take()
    try:
        yield session
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    session.check()
