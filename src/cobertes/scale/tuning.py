"""Hyperparameter search on Ray: many short trainings, the weak ones stopped early.

    project ─> shared run: labels, tiles, store ─> trials (Ray Tune, ASHA) ─> trials.csv, tune.html, best.toml

The scheduler is ASHA (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", MLSys): after
``grace-epochs``, three times as many and so on, the best third continues. The score is the mIoU of the validation
blocks.
"""

import logging
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
from cobertes.scale.cluster import connected, environment, require_resources
from cobertes.scale.search_space import param_space, require_space
from cobertes.scale.trials import (
    EPOCH,
    SCORE,
    Trial,
    best_trial,
    note_failure,
    read_trials,
    run_trial,
    shared_folder,
    summary,
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
"""One of so many trials continues at each rung of ASHA."""

LOST_NODES = 5
"""Losses of its node after which a trial is resumed from its last checkpoint."""

RAY = "ray"
"""Folder with Ray Tune's own state of the search."""

VARIABLES = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no logs and tables of its own
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would end with code 0 on an interrupt
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # it would stop all if one trial fails before its first score
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""Environment variables of Ray Tune during a search."""

OnMessage = Callable[[str, str], None]


@dataclass(frozen=True)
class Search:
    """Result of a search: trials, the best of them, and paths: project file with its settings, page, table."""

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
    """Run the search of the project's ``[tune]`` section, or resume an interrupted one.

    folder      of the search; on a cluster, at the same path on all nodes
    address     of a Ray cluster (`cluster.connected`)
    on_message  receives (what, text) when a trial or stage has finished
    Raises SettingsError for an invalid search space and for a folder of another search, TrainingError if no trial
    has a score, ClusterError, and the errors of the labels and tiles stages.
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
    table, page, best_project = write_results(folder, project, trials, best)
    return Search(trials, best, best_project, page, table)


def _require_same_search(project: Project, note: Path) -> None:
    """Raise SettingsError if the folder holds a search with other settings; write them into a new one."""
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
    """Run all trials, or the remaining ones of an interrupted search."""
    from ray import tune

    from cobertes.scale.tune_controller import controlled

    asked = project.settings.tune
    needs = {"CPU": asked.cpus, "GPU": asked.gpus}
    require_resources(ray, needs, "Set fewer tune.cpus or tune.gpus: what one trial takes")
    with environment(VARIABLES), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations between Ray and Optuna
        tuner = _tuner(project, folder, on_message)
        try:
            with controlled(_listener(project, folder, on_message)):
                results = tuner.fit()
        except (tune.TuneError, ray.exceptions.RayError) as error:
            last = str(error).strip().splitlines()[-1]
            raise ClusterError(f"the search stopped: {last}. The same command goes on with it.") from error
    if results.errors and not read_trials(folder, project.settings):
        shutil.rmtree(folder / RAY)
        last = str(results.errors[0]).strip().splitlines()[-1]
        raise ClusterError(f"no trial could begin: {last}. All nodes must see {folder} at the same path.")


def _listener(project: Project, folder: Path, on_message: OnMessage) -> Any:
    """Listener that reports each trial that has ended, by its id."""
    from cobertes.scale.tune_controller import TrialListener

    def trial_of(trial_id: str) -> Trial | None:
        return next((one for one in read_trials(folder, project.settings) if one.id == trial_id), None)

    def on_end(trial_id: str) -> None:
        trial = trial_of(trial_id)
        on_message("trial", "lost" if trial is None else summary(trial))

    def on_lost(trial_id: str) -> None:
        trial = trial_of(trial_id)
        if trial is not None and trial.failed is None:
            note_failure(trial_folder(folder, trial.number), f"its process or node died {LOST_NODES + 1} times")
        on_end(trial_id)

    return TrialListener(on_end, on_lost)


def _tuner(project: Project, folder: Path, on_message: OnMessage) -> Any:
    """Ray Tune's Tuner: restored if an interrupted search has left its state, else a new one."""
    from ray import tune

    from cobertes.scale.tune_controller import SilentProgress

    settings, state = project.settings, (folder / RAY / "search").resolve()
    asked, space = settings.tune, param_space(settings.tune.search)
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, search=str(folder.resolve())), {"cpu": asked.cpus, "gpu": asked.gpus}
    )
    # a search interrupted in its first second has left no state
    if tune.Tuner.can_restore(str(state)) and any(state.glob("experiment_state-*.json")):
        on_message("tune", "going on with an interrupted search")
        return tune.Tuner.restore(str(state), trainable=trainable, param_space=space, resume_unfinished=True)
    for stale in (folder / "trials", folder / RAY):
        shutil.rmtree(stale, ignore_errors=True)
    return tune.Tuner(
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
            name=state.name,
            storage_path=str(state.parent),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=LOST_NODES),
            callbacks=[SilentProgress()],
        ),
    )


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
