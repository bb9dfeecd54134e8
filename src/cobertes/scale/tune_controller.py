"""How Ray Tune starts trials here: as plain actors, each waiting for a free place, not in placement groups.

Once its node has died, a group that fits nowhere is tried again without a pause, and may keep the head of a
cluster so busy that nothing else gets through (github.com/ray-project/ray/pull/65007). A trial is one actor and
needs none.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import ray
from ray.air.execution import FixedResourceManager
from ray.tune.execution.tune_controller import TuneController

from cobertes.scale.cluster import slots


class Places(FixedResourceManager):
    """An actor for each place on the nodes there are, and one more: a cluster that can grow sees it wait."""

    def has_resources_ready(self, resource_request: Any) -> bool:
        """Whether another actor may be started."""
        asked = resource_request in self._requested_resources
        return asked and len(self._used_resources) <= slots(ray, resource_request.required_resources)


class Controller(TuneController):
    """Of a search. Its trials end with it, interrupted or not: Tune sees to that after an Exception only."""

    def __init__(self, **options: Any) -> None:
        super().__init__(resource_manager_factory=Places, **options)

    def step(self) -> None:
        """Handle an event."""
        try:
            super().step()
        except (KeyboardInterrupt, SystemExit):
            # else trials go on training in folders where a later search begins them again
            self._actor_manager.cleanup()
            raise


@contextmanager
def plain_actors() -> Iterator[None]:
    """Searches meanwhile take this controller: Tune has no setting for what it is made with."""
    module: Any = import_module("ray.tune.tune")
    before, module.TuneController = module.TuneController, Controller
    try:
        yield
    finally:
        module.TuneController = before
