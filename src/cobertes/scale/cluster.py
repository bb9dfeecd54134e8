"""A Ray cluster: this machine alone, or one that is running already; what fits on it; and its errors as ours."""

import logging
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cobertes.errors import ClusterError, SettingsError
from cobertes.extras import require_extra

LOCAL, AUTO = "local", "auto"

STORE_BYTES = 128 * 2**20, 96 * 2**20
"""Of a local cluster's object store: at all events, and for every processor."""

RETRIES = 5
"""Of a task whose worker or node was lost."""

VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to anybody
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what new versions do by themselves, and old ones warn of
    "RAY_DEDUP_LOGS": "0",
    "RAY_task_oom_retries": str(RETRIES),  # of a task that was killed as its node ran out of memory: else no end
}
"""Of Ray, where they are not set."""

log = logging.getLogger(__name__)


def require_cluster(address: str) -> None:
    """Raise as `connected` does, and hold nothing: for work that comes hours later."""
    if address == LOCAL:
        require_extra("ray", "scale")
        return
    with connected(address):
        pass


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
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    ray = require_extra("ray", "scale")
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        cpus = max(processors(), threads)
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


def processors() -> int:
    """Of this machine, that this process may use: fewer in a container, and where a batch system binds it."""
    from ray._private.utils import get_num_cpus  # reads what a container allows

    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(bound, int(get_num_cpus(override_docker_cpu_warning=True))))


def slots(ray: Any, needs: dict[str, float]) -> int:
    """How many tasks run at once now; each ``needs`` so much of ``CPU``, ``GPU`` and ``memory`` in bytes."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(node.get(name, 0) / amount) for name, amount in needs.items() if amount) for node in nodes)


def require_room(ray: Any, needs: dict[str, float], way_out: str) -> None:
    """Raise SettingsError where this machine can never run a task; of a cluster, say that it waits for a node.

    needs    as for `slots`
    way_out  what to change, for people
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
    """What a task returned. Its own error comes out as it was raised; ClusterError where Ray gave it up."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        first = str(error).strip().splitlines()[0]
        raise ClusterError(f"a task was lost again and again ({type(error).__name__}: {first})") from error
