"""Ray cluster, local or already running: connection, resources, and its errors as `ClusterError`."""

import logging
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cobertes.errors import ClusterError, SettingsError
from cobertes.extras import require_extra

LOCAL, AUTO = "local", "auto"

STORE_BYTES = 128 * 2**20, 96 * 2**20
"""Object store of a local cluster: constant part, and per CPU."""

RETRIES = 5
"""Retries of a task whose worker or node was lost."""

VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the default of new versions; old ones warn without it
    "RAY_DEDUP_LOGS": "0",
    "RAY_task_oom_retries": str(RETRIES),  # when a node runs out of memory; by default without end
}
"""Environment variables of Ray while connected, unless the user has set them."""

LOCAL_VARIABLES = {"RAY_AUTH_MODE": "disabled"}
"""The same of a local cluster: Ray would write a token to the home folder, and fail if it is not writable."""

log = logging.getLogger(__name__)


def require_cluster(address: str) -> None:
    """Check early that `connected` will succeed, and raise as it does, without staying connected."""
    if address == LOCAL:
        require_extra("ray", "scale")
        return
    with connected(address):
        pass


@contextmanager
def connected(address: str, threads: int = 1) -> Iterator[Any]:
    """Ray's module, connected to a cluster; on leaving, a local cluster is stopped, any other disconnected.

    address  ``local`` starts a cluster on this machine's CPUs, ``auto`` is the one that this machine is a node of,
             else HOST:PORT. An existing connection of this process is used and left open.
    threads  minimum number of CPUs of a local cluster
    Raises SettingsError if Ray is not installed or the address is malformed, ClusterError if nothing answers.
    """
    if address not in (LOCAL, AUTO) and not re.fullmatch(r"(ray://)?[\w.-]+:\d+", address):
        raise SettingsError(f"'{address}' is no address of a Ray cluster. Give local, auto or HOST:PORT.")
    variables = VARIABLES | (LOCAL_VARIABLES if address == LOCAL else {})
    with environment({name: value for name, value in variables.items() if name not in os.environ}):
        ray = require_extra("ray", "scale")
        if ray.is_initialized():
            yield ray
            return
        _connect(ray, address, threads)
        try:
            yield ray
        finally:
            ray.shutdown()


def _connect(ray: Any, address: str, threads: int) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        cpus = max(available_cpus(), threads)
        store = STORE_BYTES[0] + STORE_BYTES[1] * cpus
        options |= {"num_cpus": cpus, "object_store_memory": store, "include_dashboard": False}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"no Ray cluster at '{address}': {error}. Start one (ray start --head), or give --ray local."
        ) from error
    if threading.current_thread() is threading.main_thread():  # Ray's own handler exits silently
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for this process and those that it starts; restored on leaving."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def available_cpus() -> int:
    """CPUs available to this process: honours cgroup limits and CPU affinity (Slurm etc.)."""
    from ray._private.utils import get_num_cpus  # honours cgroup limits

    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(bound, int(get_num_cpus(override_docker_cpu_warning=True))))


def slots(ray: Any, needs: dict[str, float]) -> int:
    """Number of tasks that can run at once; ``needs`` of each: CPU, GPU, memory in bytes."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(node.get(name, 0) / amount) for name, amount in needs.items() if amount) for node in nodes)


def require_resources(ray: Any, needs: dict[str, float], way_out: str) -> None:
    """Raise SettingsError if the only node can never run a task; with several, warn that it waits for a new one.

    needs    as for `slots`
    way_out  sentence for the message: what to change
    """
    if slots(ray, needs):
        return
    needs = {name: amount for name, amount in needs.items() if amount}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    kinds = sorted({_in_words({name: node.get(name, 0.0) for name in needs}) for node in nodes})
    message = f"no node has {_in_words(needs)} (found: {'; '.join(kinds)}). {way_out}"
    if len(nodes) == 1:
        raise SettingsError(message)
    log.warning("%s, or wait until one joins", message)


def _in_words(resources: dict[str, float]) -> str:
    cpus = resources.get("CPU", 0)
    texts = {
        "CPU": f"{cpus:g} processor{'' if cpus == 1 else 's'}",
        "GPU": f"{resources.get('GPU', 0):g} GPU",
        "memory": f"{resources.get('memory', 0) / 2**20:.0f} MB of memory",
    }
    *first, last = (text for name, text in texts.items() if name in resources)
    return f"{', '.join(first)} and {last}" if first else last


def result_of(ray: Any, reference: Any) -> Any:
    """Result of a task. Raises the task's own error, or ClusterError if Ray gave it up."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        first = str(error).strip().splitlines()[0]
        raise ClusterError(f"a task was lost again and again ({type(error).__name__}: {first})") from error
