"""Ray Tune controller that starts trials as plain actors, each waiting for a free slot, not in placement groups.

Once its node has died, a placement group that fits nowhere is retried without a pause, and may keep the head of a
cluster so busy that nothing else gets through (github.com/ray-project/ray/pull/65007). A trial is one actor and
needs none.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

import ray
from ray.air.execution import FixedResourceManager
from ray.tune import Callback
from ray.tune.execution.tune_controller import TuneController
from ray.tune.progress_reporter import TrialProgressCallback

from cobertes.scale.cluster import slots


class SlotManager(FixedResourceManager):
    """One actor per slot of the nodes, and one more: an autoscaling cluster sees it wait."""

    def has_resources_ready(self, resource_request: Any) -> bool:
        """Another actor may be started."""
        asked = resource_request in self._requested_resources
        return asked and len(self._used_resources) <= slots(ray, resource_request.required_resources)


class SilentProgress(TrialProgressCallback):
    """Replaces Tune's own callback, which prints trials without a score to standard output."""

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        """Print nothing."""

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Print nothing."""

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Print nothing."""


class TrialListener(Callback):
    """Calls functions with the id of a trial that has ended, or was lost too often.

    It is given to the controller of this process, not to the Tuner, which pickles its callbacks into the search's
    folder and unpickles them when the search resumes.
    """

    def __init__(self, on_end: Callable[[str], None], on_lost: Callable[[str], None]) -> None:
        self.on_end, self.on_lost = on_end, on_lost

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Pass the trial's id on."""
        self.on_end(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Pass the trial's id on."""
        self.on_lost(trial.trial_id)


class Controller(TuneController):
    """Controller of a search that ends its trials on an interrupt too; Tune does so only after an Exception."""

    def __init__(self, *, listener: TrialListener, callbacks: Any = None, **options: Any) -> None:
        super().__init__(resource_manager_factory=SlotManager, callbacks=[*(callbacks or []), listener], **options)

    def step(self) -> None:
        """Handle an event."""
        try:
            super().step()
        except (KeyboardInterrupt, SystemExit):
            # else trials would keep training in folders that a later search resumes
            self._actor_manager.cleanup()
            raise


@contextmanager
def controlled(listener: TrialListener) -> Iterator[None]:
    """Use this controller in searches meanwhile: Tune has no setting for its controller class."""
    module: Any = import_module("ray.tune.tune")
    before, module.TuneController = module.TuneController, partial(Controller, listener=listener)
    try:
        yield
    finally:
        module.TuneController = before
