"""How seasons are shown to the network: all ways, with all seasons, with one alone, with another than learnt.

    python benchmarks/seasons.py demo/project.toml --out /tmp/seasons --seeds 0 1 2 --epochs 20

Trains `stack`, `separate` and `shared`, `shared` with season dropout, and a model of each season by itself;
judges them on the validation blocks with all seasons, with each alone, and the single ones on the other season's
scene in place of their own. The same ground, epochs and samples for all; prints a Markdown table. Finished runs
are not repeated.
"""

import dataclasses
import logging
from pathlib import Path

import torch
from variants import merged, options, parse, run_until, spread

from cobertes.geo.scene import Scene
from cobertes.learn.inference import each_season, evaluate_windows, plan_blocks
from cobertes.learn.model_file import load_model
from cobertes.tiles.split import Part
from cobertes.workflow.context import open_dataset
from cobertes.workflow.project import Project, load_project
from cobertes.workflow.run_folder import open_run

WAYS = {
    "stack": "",
    "separate": 'model.seasons="separate"',
    "shared": 'model.seasons="shared"',
    "shared, dropout": 'model.seasons="shared", augmentation.season-dropout={probability=0.3}',
}


def with_scenes(project: Project, seasons: dict[str, str]) -> Project:
    """The project with the scenes of some seasons, called by others' names: name -> season that is shown."""
    areas = [
        dataclasses.replace(area, scenes={name: area.scenes[shown] for name, shown in seasons.items()})
        for area in project.areas
    ]
    return dataclasses.replace(project, areas=areas)


def score(folder: Path, shown: dict[str, dict[str, Scene]]) -> float:
    """mIoU of a run's model on its validation blocks, where ``shown`` are the scenes by area and season."""
    model, header = load_model(folder)
    ground = open_dataset(*open_run(folder))
    areas = {name: dataclasses.replace(area, scenes=shown[name]) for name, area in ground.areas.items()}
    ground = dataclasses.replace(ground, areas=areas)

    def logits(x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            found: torch.Tensor = model(x)
            return found

    plan = plan_blocks(ground, Part.VALIDATION, header.window, header.window // 4)
    matrix, _ = evaluate_windows(each_season(logits, header.inputs), header.inputs, ground, plan, 16)
    return matrix.miou


def main() -> None:
    """Train all ways with all seeds and print the table."""
    arguments = options(__doc__).parse_args()
    logging.basicConfig(level=logging.WARNING, format="  %(message)s")
    project = load_project(arguments.project)
    seasons = project.seasons
    scenes = {area.name: area.scenes for area in project.areas}
    found: dict[tuple[str, str], list[float]] = {}
    for seed in arguments.seeds:
        for name, changes in WAYS.items():
            folder = arguments.out / f"{name.replace(', ', '-')}-{seed}"
            run_until("train", merged(project, parse(f"{name}: {changes}")[1], seed, arguments.epochs), folder)
            found.setdefault((name, "all"), []).append(score(folder, scenes))
            if name == "stack":
                continue
            for season in seasons:
                alone = {area: {season: by_season[season]} for area, by_season in scenes.items()}
                found.setdefault((name, season), []).append(score(folder, alone))
        for season in seasons:
            folder = arguments.out / f"{season}-{seed}"
            one = merged(with_scenes(project, {season: season}), {}, seed, arguments.epochs)
            run_until("train", one, folder)
            for shown in seasons:
                other = {area: {season: by_season[shown]} for area, by_season in scenes.items()}
                found.setdefault((f"{season} alone", shown), []).append(score(folder, other))
    columns = ["all", *seasons]
    print("| learnt from | " + " | ".join(f"judged on {column}" for column in columns) + " |")
    print("|---" * (1 + len(columns)) + "|")
    for name in dict.fromkeys(name for name, _ in found):
        cells = [spread(found[name, column]) if (name, column) in found else "–" for column in columns]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
