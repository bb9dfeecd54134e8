"""Land-cover maps from satellite mosaics and a reference map. Public names load when they are first used.

geo -> labels -> tiles -> accuracy -> learn -> apply -> project, stages, run -> scale -> cli: each layer imports
only what stands before it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cobertes.engines.engine import open_engine as open_engine
    from cobertes.errors import CobertesError as CobertesError
    from cobertes.evaluation.evaluate import evaluate as evaluate
    from cobertes.geo.scene import open_scene as open_scene
    from cobertes.labels.aggregate import make_labels as make_labels
    from cobertes.labels.legend import Legend as Legend
    from cobertes.labels.legend import load_legend as load_legend
    from cobertes.predict.predict import predict_map as predict_map
    from cobertes.synthetic.demo import write_demo as write_demo
    from cobertes.tiles.index import build_index as build_index
    from cobertes.workflow.project import load_project as load_project
    from cobertes.workflow.run import Run as Run

__version__ = "0.1.0"

_HOMES = {
    "CobertesError": "errors",
    "Legend": "labels.legend",
    "Run": "workflow.run",
    "build_index": "tiles.index",
    "evaluate": "evaluation.evaluate",
    "load_legend": "labels.legend",
    "load_project": "workflow.project",
    "make_labels": "labels.aggregate",
    "open_engine": "engines.engine",
    "open_scene": "geo.scene",
    "predict_map": "predict.predict",
    "write_demo": "synthetic.demo",
}

__all__ = [
    "CobertesError",
    "Legend",
    "Run",
    "build_index",
    "evaluate",
    "load_legend",
    "load_project",
    "make_labels",
    "open_engine",
    "open_scene",
    "predict_map",
    "write_demo",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cobertes' has no attribute '{name}'")
    return getattr(import_module(f"cobertes.{_HOMES[name]}"), name)
