"""A Ray cluster: this machine alone, or one that is running already; and its errors as ours."""

import logging
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cobertes.apply.runtimes import need
from cobertes.errors import ClusterError, SettingsError

LOCAL, AUTO = "local", "auto"

STORE_BYTES = 128 * 2**20, 96 * 2**20
"""Of a local cluster's object store: at all events, and for every processor."""

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to anybody
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # without it every start warns of a coming change
    "RAY_DEDUP_LOGS": "0",
}


@contextmanager
def connected(address: str, threads: int = 1) -> Iterator[Any]:
    """Ray's module, connected to a cluster; on leaving, a local one is stopped, another one left.

    address  ``local`` starts one of this machine's processors, ``auto`` is the one that this machine is a node of,
             else HOST:PORT. Where this process is connected already, it stays so.
    threads  processors that a local cluster has at least
    Raises SettingsError where Ray is not installed or the address is none, ClusterError where nothing answers.
    """
    if address not in (LOCAL, AUTO) and not re.fullmatch(r"(ray://)?[\w.-]+:\d+", address):
        raise SettingsError(f"'{address}' is no address of a Ray cluster. Give local, auto or HOST:PORT.")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    ray = need("ray", "scale")
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        cpus = max(os.cpu_count() or 1, threads)
        store = STORE_BYTES[0] + STORE_BYTES[1] * cpus
        options |= {"num_cpus": cpus, "object_store_memory": store, "include_dashboard": False}
    at_the_end = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"no Ray cluster at '{address}': {error}. Start one (ray start --head), or give --ray local."
        ) from error
    if threading.current_thread() is threading.main_thread():  # Ray's own handler would end without a word
        signal.signal(signal.SIGTERM, at_the_end)
    try:
        yield ray
    finally:
        ray.shutdown()


def slots(ray: Any, needs: dict[str, float]) -> int:
    """How many tasks run at once now; each ``needs`` so much of ``CPU``, ``GPU`` and ``memory`` in bytes."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(node.get(name, 0) / amount) for name, amount in needs.items() if amount) for node in nodes)


def result_of(ray: Any, reference: Any) -> Any:
    """What a task returned. Its own error comes out as it was raised; ClusterError where Ray gave it up."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        first = str(error).strip().splitlines()[0]
        raise ClusterError(f"a task was lost again and again ({type(error).__name__}: {first})") from error
