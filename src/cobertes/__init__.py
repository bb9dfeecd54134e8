"""Land-cover maps from satellite mosaics and a reference map. Public names load when they are first used.

cli -> scale -> workflow -> report, evaluation -> predict -> engines -> learn -> survey, accuracy -> tiles ->
labels -> geo -> the base modules: each layer imports only what stands to its right (docs/architecture.md).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cobertes.accuracy.confusion import ConfusionMatrix as ConfusionMatrix
    from cobertes.accuracy.run_comparison import compare_runs as compare_runs
    from cobertes.engines.engine import Engine as Engine
    from cobertes.engines.engine import ensemble as ensemble
    from cobertes.engines.engine import open_engine as open_engine
    from cobertes.errors import BandMismatchError as BandMismatchError
    from cobertes.errors import ClusterError as ClusterError
    from cobertes.errors import CobertesError as CobertesError
    from cobertes.errors import DeviceMemoryError as DeviceMemoryError
    from cobertes.errors import GridMismatchError as GridMismatchError
    from cobertes.errors import InputFileError as InputFileError
    from cobertes.errors import LegendError as LegendError
    from cobertes.errors import ModelFileError as ModelFileError
    from cobertes.errors import NoTilesError as NoTilesError
    from cobertes.errors import OutputExistsError as OutputExistsError
    from cobertes.errors import SettingsError as SettingsError
    from cobertes.errors import SplitError as SplitError
    from cobertes.errors import StorageError as StorageError
    from cobertes.errors import TrainingError as TrainingError
    from cobertes.errors import UnknownCodesError as UnknownCodesError
    from cobertes.evaluation.evaluate import Evaluation as Evaluation
    from cobertes.evaluation.evaluate import evaluate as evaluate
    from cobertes.geo.area import Area as Area
    from cobertes.geo.scene import Scene as Scene
    from cobertes.geo.windows import Window as Window
    from cobertes.labels.aggregate import make_labels as make_labels
    from cobertes.labels.crosswalk import Crosswalk as Crosswalk
    from cobertes.labels.crosswalk import load_crosswalk as load_crosswalk
    from cobertes.labels.legend import Legend as Legend
    from cobertes.labels.legend import LegendClass as LegendClass
    from cobertes.labels.legend import legend_names as legend_names
    from cobertes.labels.legend import load_legend as load_legend
    from cobertes.labels.recode import RecodeTable as RecodeTable
    from cobertes.labels.recode import recode_map as recode_map
    from cobertes.labels.vote_weights import VoteWeights as VoteWeights
    from cobertes.learn.loader import batches as batches
    from cobertes.learn.model_file import ModelHeader as ModelHeader
    from cobertes.learn.model_file import load_model as load_model
    from cobertes.learn.torch_dataset import TileDataset as TileDataset
    from cobertes.learn.train import train as train
    from cobertes.learn.training_setup import TrainingSetup as TrainingSetup
    from cobertes.learn.training_setup import prepare_training as prepare_training
    from cobertes.predict.array import predict_array as predict_array
    from cobertes.predict.predict import predict_map as predict_map
    from cobertes.settings import AugmentationSettings as AugmentationSettings
    from cobertes.settings import LabelSettings as LabelSettings
    from cobertes.settings import ModelSettings as ModelSettings
    from cobertes.settings import PredictSettings as PredictSettings
    from cobertes.settings import Settings as Settings
    from cobertes.settings import SplitSettings as SplitSettings
    from cobertes.settings import TileSettings as TileSettings
    from cobertes.settings import TrainSettings as TrainSettings
    from cobertes.settings import TuneSettings as TuneSettings
    from cobertes.survey.area_estimation import estimate_areas as estimate_areas
    from cobertes.synthetic.demo import write_demo as write_demo
    from cobertes.tiles.band_statistics import Statistics as Statistics
    from cobertes.tiles.dataset import LabelledDataset as LabelledDataset
    from cobertes.tiles.index import TileIndex as TileIndex
    from cobertes.tiles.index import build_index as build_index
    from cobertes.tiles.split import Split as Split
    from cobertes.workflow.context import open_dataset as open_dataset
    from cobertes.workflow.project import Project as Project
    from cobertes.workflow.project import load_project as load_project
    from cobertes.workflow.run import Run as Run
    from cobertes.workflow.run_folder import RunFolder as RunFolder
    from cobertes.workflow.run_folder import open_run as open_run
    from cobertes.workflow.scene_paths import open_scene as open_scene

__version__ = "0.1.0"

_HOMES = {
    "Area": "geo.area",
    "AugmentationSettings": "settings",
    "BandMismatchError": "errors",
    "ClusterError": "errors",
    "CobertesError": "errors",
    "ConfusionMatrix": "accuracy.confusion",
    "Crosswalk": "labels.crosswalk",
    "DeviceMemoryError": "errors",
    "Engine": "engines.engine",
    "Evaluation": "evaluation.evaluate",
    "GridMismatchError": "errors",
    "InputFileError": "errors",
    "LabelSettings": "settings",
    "LabelledDataset": "tiles.dataset",
    "Legend": "labels.legend",
    "LegendClass": "labels.legend",
    "LegendError": "errors",
    "ModelFileError": "errors",
    "ModelHeader": "learn.model_file",
    "ModelSettings": "settings",
    "NoTilesError": "errors",
    "OutputExistsError": "errors",
    "PredictSettings": "settings",
    "Project": "workflow.project",
    "RecodeTable": "labels.recode",
    "Run": "workflow.run",
    "RunFolder": "workflow.run_folder",
    "Scene": "geo.scene",
    "Settings": "settings",
    "SettingsError": "errors",
    "Split": "tiles.split",
    "SplitError": "errors",
    "SplitSettings": "settings",
    "Statistics": "tiles.band_statistics",
    "StorageError": "errors",
    "TileDataset": "learn.torch_dataset",
    "TileIndex": "tiles.index",
    "TileSettings": "settings",
    "TrainSettings": "settings",
    "TrainingError": "errors",
    "TrainingSetup": "learn.training_setup",
    "TuneSettings": "settings",
    "UnknownCodesError": "errors",
    "VoteWeights": "labels.vote_weights",
    "Window": "geo.windows",
    "batches": "learn.loader",
    "build_index": "tiles.index",
    "compare_runs": "accuracy.run_comparison",
    "ensemble": "engines.engine",
    "estimate_areas": "survey.area_estimation",
    "evaluate": "evaluation.evaluate",
    "legend_names": "labels.legend",
    "load_crosswalk": "labels.crosswalk",
    "load_legend": "labels.legend",
    "load_model": "learn.model_file",
    "load_project": "workflow.project",
    "make_labels": "labels.aggregate",
    "open_dataset": "workflow.context",
    "open_engine": "engines.engine",
    "open_run": "workflow.run_folder",
    "open_scene": "workflow.scene_paths",
    "predict_array": "predict.array",
    "predict_map": "predict.predict",
    "prepare_training": "learn.training_setup",
    "recode_map": "labels.recode",
    "train": "learn.train",
    "write_demo": "synthetic.demo",
}

__all__ = [
    "Area",
    "AugmentationSettings",
    "BandMismatchError",
    "ClusterError",
    "CobertesError",
    "ConfusionMatrix",
    "Crosswalk",
    "DeviceMemoryError",
    "Engine",
    "Evaluation",
    "GridMismatchError",
    "InputFileError",
    "LabelSettings",
    "LabelledDataset",
    "Legend",
    "LegendClass",
    "LegendError",
    "ModelFileError",
    "ModelHeader",
    "ModelSettings",
    "NoTilesError",
    "OutputExistsError",
    "PredictSettings",
    "Project",
    "RecodeTable",
    "Run",
    "RunFolder",
    "Scene",
    "Settings",
    "SettingsError",
    "Split",
    "SplitError",
    "SplitSettings",
    "Statistics",
    "StorageError",
    "TileDataset",
    "TileIndex",
    "TileSettings",
    "TrainSettings",
    "TrainingError",
    "TrainingSetup",
    "TuneSettings",
    "UnknownCodesError",
    "VoteWeights",
    "Window",
    "batches",
    "build_index",
    "compare_runs",
    "ensemble",
    "estimate_areas",
    "evaluate",
    "legend_names",
    "load_crosswalk",
    "load_legend",
    "load_model",
    "load_project",
    "make_labels",
    "open_dataset",
    "open_engine",
    "open_run",
    "open_scene",
    "predict_array",
    "predict_map",
    "prepare_training",
    "recode_map",
    "train",
    "write_demo",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cobertes' has no attribute '{name}'")
    return getattr(import_module(f"cobertes.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
