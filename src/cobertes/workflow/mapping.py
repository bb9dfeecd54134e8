"""Predict stage: a map of every area, several areas at once if others than this process compute them."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

from cobertes.accuracy.calibration import read_calibration
from cobertes.errors import SettingsError
from cobertes.fingerprints import stamp
from cobertes.geo.area import Area
from cobertes.progress import SILENT, Progress, SharedBar
from cobertes.workflow.context import StageContext, count_of, open_dataset
from cobertes.workflow.project import Project
from cobertes.workflow.run_folder import RunFolder, open_run
from cobertes.workflow.scene_paths import resolve
from cobertes.workflow.stage_fingerprints import map_fingerprints, trained_fingerprint

if TYPE_CHECKING:
    from cobertes.engines.engine import Engine
    from cobertes.predict.prediction_job import Executor

AREAS_AT_ONCE = 8
"""Maps made concurrently if others than this process compute them."""


def predict(context: StageContext) -> str:
    """Map every area, except those whose map is up to date. Returns a summary in one line."""
    from cobertes.engines.engine import open_engine

    project, folder = context.project, context.folder
    settings = project.settings.predict
    model = model_file(project, folder)
    if settings.precision == "int8" and settings.model is None:
        quantize_if_needed(project, folder, context.progress)
    elif settings.precision == "int8":
        quantize_model_of_run(model, context.progress)
    engine = open_engine(
        model, device=settings.device, precision=settings.precision, engine=settings.engine, tta=settings.views
    )
    record = MapRecord(context, engine.how)
    todo = [area for area in project.areas if not record.is_up_to_date(area)]
    before = count_of(len(project.areas) - len(todo), "map") + " from before"
    if not todo:
        return before
    begin = time.monotonic()
    pixels = _map_areas(context, engine, todo, record)
    speed = pixels / 1e6 / max(time.monotonic() - begin, 1e-9)
    text = f"{count_of(len(todo), 'map')} of {pixels / 1e6:.2f} Mpx at {speed:.2f} Mpx/s, {engine.how}"
    return text if len(todo) == len(project.areas) else f"{text}; {before}"


class MapRecord:
    """Record of the maps that are finished, in stages.json: an interrupted stage does not make them again."""

    def __init__(self, context: StageContext, engine: str) -> None:
        self.folder, self.engine = context.folder, engine
        self.fingerprints = map_inputs(context)
        self.areas: dict[str, Any] = context.folder.read_record("predict").get("areas", {})
        self.lock = Lock()  # maps may end at the same time

    def is_up_to_date(self, area: Area) -> bool:
        """True if the area's map is there and was made from the same."""
        return bool(self.areas.get(area.name) == self._entry(area))

    def add(self, area: Area) -> None:
        """Record a finished map."""
        with self.lock:
            self.areas[area.name] = self._entry(area)
            self.folder.update_record("predict", areas=self.areas)

    def _entry(self, area: Area) -> list[Any]:
        outputs = self.folder.map(area.name), self.folder.confidence(area.name)
        return [[self.fingerprints[area.name], self.engine], *map(stamp, outputs)]


def _map_areas(context: StageContext, engine: "Engine", todo: Sequence[Area], record: MapRecord) -> int:
    """Map the areas; returns the pixels of their maps. If one fails, all stop and finished rows are kept."""
    from cobertes.predict.prediction_job import run_locally

    def make(area: Area, executor: "Executor", progress: Progress) -> int:
        pixels = _map_area(context, engine, area, executor, progress)
        record.add(area)
        return pixels

    stop = Event()
    with context.executor(stop) if context.executor else nullcontext(run_locally) as executor:
        if context.executor is None or len(todo) == 1:
            return sum(make(area, executor, context.progress) for area in todo)
        return _concurrently(make, todo, executor, context.progress, stop)


def _concurrently(
    make: Callable[[Area, "Executor", Progress], int],
    todo: Sequence[Area],
    executor: "Executor",
    progress: Progress,
    stop: Event,
) -> int:
    """Map several areas at once, so that many small ones keep a cluster busy."""
    mpx = sum(area.shape[0] * area.shape[1] for area in todo) / 1e6
    with progress.bar("maps", mpx, "Mpx") as advance, ThreadPoolExecutor(AREAS_AT_ONCE) as pool:
        try:
            made = [pool.submit(make, area, executor, SharedBar(advance)) for area in todo]
            return sum(one.result() for one in as_completed(made))
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _map_area(
    context: StageContext, engine: "Engine", area: Area, executor: "Executor", progress: Progress
) -> int:
    """Map one area; returns the pixels of its map."""
    from cobertes.predict.predict import predict_map

    settings, folder = context.project.settings.predict, context.folder
    made = predict_map(
        engine,
        area.scenes,
        folder.map(area.name),
        confidence=folder.confidence(area.name),
        window=settings.window,
        overlap=settings.overlap,
        blend=settings.blend,
        batch_size=settings.batch_size,
        memory=settings.memory,
        resume="if-same",
        overwrite=True,
        progress=progress,
        executor=executor,
    )
    return sum(made.counts.values())


# --- the model and its int8 version


def model_file(project: Project, folder: RunFolder) -> Path:
    """Model that the project names, or this run's own."""
    named = project.settings.predict.model
    if named is None:
        return folder.model
    from cobertes.learn.model_file import model_path

    return model_path(resolve(named, project.folder))


def map_inputs(context: StageContext) -> dict[str, str]:
    """Fingerprint, by area, of all that its map is made from, as it is on disk now."""
    model = model_file(context.project, context.folder)
    calibration, tta = model.parent / context.folder.calibration.name, context.project.settings.predict.views
    temperature = read_calibration(calibration, trained_fingerprint(model), tta)
    return map_fingerprints(context, model, temperature)


def quantize_if_needed(project: Project, folder: RunFolder, progress: Progress = SILENT) -> None:
    """Make the int8 version of this run's model, unless the present model has one.

    Raises ModelFileError if it loses too much, SettingsError without a training window or NNCF.
    """
    from cobertes.engines.quantize import quantize_model
    from cobertes.engines.runtimes import is_quantized

    if not is_quantized(folder.model):
        quantize_model(folder.model, open_dataset(project, folder), progress=progress)


def quantize_model_of_run(model: Path, progress: Progress = SILENT) -> None:
    """Make the int8 version of the model of any run, unless it has one.

    Raises SettingsError if a model file without int8 belongs to no run.
    """
    from cobertes.engines.runtimes import is_quantized
    from cobertes.learn.model_file import model_path

    path = model_path(model)
    if is_quantized(path):
        return
    folder = RunFolder(path.parent)
    if not folder.project.is_file() or path != folder.model:
        raise SettingsError(
            f"{path} has no int8 version and is not the model of a run, on whose training tiles it would be "
            f"calibrated. Name a run's folder, or use precision bf16 or fp32."
        )
    quantize_if_needed(*open_run(folder.path), progress)
