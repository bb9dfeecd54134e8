"""A search for settings: many short trainings on Ray, of which weak ones are stopped early.

    project ─> shared run: labels, tiles, store ─> trials (Ray Tune, ASHA) ─> trials.csv, tune.html, best.toml

The scheduler is ASHA (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", MLSys): after
``grace-epochs``, three times as many and so on, the better third goes on. Scores are mIoU of the validation
blocks.
"""

import logging
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from cobertes.atomic_io import read_json, write_json
from cobertes.errors import ClusterError, SettingsError, TrainingError
from cobertes.fingerprints import changed_keys
from cobertes.progress import SILENT, Progress
from cobertes.scale.cluster import connected, require_room
from cobertes.scale.search_space import param_space, require_space
from cobertes.scale.trials import (
    EPOCH,
    SCORE,
    Trial,
    best_trial,
    in_words,
    note_failure,
    read_trials,
    run_trial,
    shared_folder,
    trial_epochs,
    trial_folder,
)
from cobertes.scale.tune_report import write_results
from cobertes.workflow.context import StageContext
from cobertes.workflow.project import Project
from cobertes.workflow.run import Run
from cobertes.workflow.run_folder import open_run
from cobertes.workflow.stage_fingerprints import learning_settings
from cobertes.workflow.training import open_store, set_up_training

log = logging.getLogger(__name__)

REDUCTION = 3
"""One trial of so many goes on at each rung of ASHA."""

LOST_NODES = 5
"""That a trial may lose and begin again at its last checkpoint."""

RAY = "ray"
"""Folder of what Ray Tune keeps of the search itself."""

OnMessage = Callable[[str, str], None]


@dataclass(frozen=True)
class Search:
    """What a search found: all its trials, the best of them, and the project file that trains as it did."""

    trials: list[Trial]
    best: Trial
    project: Path
    page: Path
    table: Path


def tune(
    project: Project,
    folder: Path,
    *,
    address: str = "local",
    progress: Progress = SILENT,
    on_message: OnMessage = lambda what, text: None,
) -> Search:
    """Search as the project's ``[tune]`` says, or go on where an interrupted search stopped.

    folder    of the search; on a cluster, one that all nodes see at the same path
    address   of a Ray cluster (`cluster.connected`)
    tell      gets (what, text) when something has finished
    Raises SettingsError for what can't be searched and for a folder of another search, TrainingError where no
    trial has a score, ClusterError, and whatever labels and tiles raise.
    """
    settings = project.settings
    require_space(settings)
    _require_same_search(project, folder / "search.json")
    shared = Run(project, shared_folder(folder), progress=progress, on_message=on_message)
    for stage in ("labels", "tiles"):
        shared.run(only=stage)
    context = StageContext(*open_run(shared.folder.path), progress)
    project, setup = context.project, set_up_training(context)
    if not setup.held_out():
        raise SettingsError("there is no validation block to score trials on: set split.validation")
    open_store(setup, context)
    if not read_json(folder / "search.json").get("over"):
        with connected(address, ceil(settings.tune.cpus)) as ray:
            _search(ray, project, folder, on_message)
        write_json(folder / "search.json", read_json(folder / "search.json") | {"over": True})
    trials = read_trials(folder, settings)
    best = best_trial(trials)
    if best is None:
        why = next((trial.failed for trial in trials if trial.failed), "none was validated")
        raise TrainingError(f"no trial of {len(trials)} has a score. The first one: {why}")
    table, page, made = write_results(folder, project, trials, best)
    return Search(trials, best, made, page, table)


def _require_same_search(project: Project, note: Path) -> None:
    """Raise SettingsError where the folder holds a search with other settings; else note these."""
    now = {**learning_settings(project), "tune": project.settings.tune.model_dump(by_alias=True, mode="json")}
    if note.exists():
        changed = changed_keys(read_json(note)["settings"], now)
        if changed:
            raise SettingsError(
                f"{note.parent} holds a search with other settings ({', '.join(changed[:4])}). Name another "
                f"folder for a new search: --run NEW"
            )
        return
    write_json(note, {"settings": now})


def _search(ray: Any, project: Project, folder: Path, on_message: OnMessage) -> None:
    """Run all trials, or those that an interrupted search has left."""
    # Ray would write logs and tables of its own, take an interrupt for a wish to end with code 0, and stop all for
    # one trial that fails before it has a score
    os.environ |= {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
    }  # fmt: skip
    from ray import tune

    from cobertes.scale.tune_controller import plain_actors

    settings = project.settings
    asked = settings.tune
    needs = {"CPU": asked.cpus, "GPU": asked.gpus}
    require_room(ray, needs, "Set fewer tune.cpus or tune.gpus: what one trial takes")
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, search=str(folder.resolve())), {"cpu": asked.cpus, "gpu": asked.gpus}
    )
    kept, space = (folder / RAY / "search").resolve(), param_space(asked.search)

    def hear(trial: str) -> None:
        on_message(
            "trial", next((in_words(one) for one in read_trials(folder, settings) if one.id == trial), "lost")
        )

    def lose(trial: str) -> None:
        for one in read_trials(folder, settings):
            if one.id == trial and one.failed is None:
                note_failure(trial_folder(folder, one.number), f"its process or node died {LOST_NODES + 1} times")
        hear(trial)

    _Told.hear, _Told.lose = staticmethod(hear), staticmethod(lose)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of interfaces that change in coming versions of Ray and Optuna
        # an interruption in the first second leaves the search without its state
        if tune.Tuner.can_restore(str(kept)) and any(kept.glob("experiment_state-*.json")):
            on_message("tune", "going on with an interrupted search")
            tuner = tune.Tuner.restore(str(kept), trainable=trainable, param_space=space, resume_unfinished=True)
        else:
            for begun in (folder / "trials", folder / RAY):
                shutil.rmtree(begun, ignore_errors=True)
            tuner = tune.Tuner(
                trainable,
                param_space=space,
                tune_config=tune.TuneConfig(
                    metric=SCORE,
                    mode="max",
                    num_samples=asked.trials,
                    search_alg=_algorithm(asked.algorithm, asked.seed),
                    scheduler=_scheduler(trial_epochs(settings), asked.grace_epochs),
                    time_budget_s=None if asked.minutes is None else 60 * asked.minutes,
                ),
                run_config=tune.RunConfig(
                    name=kept.name,
                    storage_path=str(kept.parent),
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=LOST_NODES),
                    callbacks=[_callback()],
                ),
            )
        try:
            with plain_actors():
                ended = tuner.fit()
        except (tune.TuneError, ray.exceptions.RayError) as error:
            last = str(error).strip().splitlines()[-1]
            raise ClusterError(f"the search stopped: {last}. The same command goes on with it.") from error
    if ended.errors and not read_trials(folder, settings):
        shutil.rmtree(folder / RAY)
        last = str(ended.errors[0]).strip().splitlines()[-1]
        raise ClusterError(f"no trial could begin: {last}. All nodes must see {folder} at the same path.")


def _scheduler(epochs: int, grace: int) -> Any:
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(
        time_attr=EPOCH, max_t=epochs, grace_period=min(grace, epochs), reduction_factor=REDUCTION
    )


def _algorithm(name: str, seed: int) -> Any:
    if name == "tpe":
        from ray.tune.search.optuna import OptunaSearch

        logging.getLogger("optuna").setLevel(logging.WARNING)
        return OptunaSearch(seed=seed)
    from ray.tune.search.basic_variant import BasicVariantGenerator

    return BasicVariantGenerator(random_state=seed)


class _Told:
    """Who hears of trials that are over, by their id, and of those that were lost too often.

    Ray keeps its callbacks in the search's folder and takes them out of there when a search goes on: they can't
    hold what belongs to this process.
    """

    hear: Callable[[str], None]
    lose: Callable[[str], None]


def _callback() -> Any:
    from ray.tune.progress_reporter import TrialProgressCallback

    class Over(TrialProgressCallback):
        """In place of Tune's own, which writes of trials without a score to standard output."""

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            pass

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            _Told.hear(trial.trial_id)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            _Told.lose(trial.trial_id)

    return Over()
