"""A learning curve: the same training on 10, 30 and 100 % of the training tiles, several seeds.

    python benchmarks/learning_curve.py demo/project.toml --out /tmp/curve --seeds 0 1 2 --epochs 20

Tiles are left out at random, with all of their ground: no random crop touches it. Split, validation blocks, steps
and epochs are the same for all shares, so a tenth of the tiles is seen ten times as often. Scores are those of the
best epoch on the validation blocks. Finished trainings are not repeated.
"""

import logging
from pathlib import Path

import numpy as np
from variants import merged, options, run_until, spread

from cobertes.atomic_io import read_json
from cobertes.learn.metrics_log import best_epoch, read_history
from cobertes.learn.train import train
from cobertes.learn.training_setup import prepare_training
from cobertes.tiles.band_statistics import Statistics
from cobertes.tiles.filters import POOR
from cobertes.tiles.index import load_index
from cobertes.workflow.context import StageContext, open_dataset
from cobertes.workflow.project import Project, load_project
from cobertes.workflow.run_folder import RunFolder
from cobertes.workflow.training import open_store, set_up_training

SHARES = (0.1, 0.3, 1.0)


def learn(project: Project, files: RunFolder, share: float, out: Path) -> int:
    """Train on a share of a run's training tiles; returns how many these are."""
    frame, seed = load_index(files.tiles), project.settings.train.seed
    tiles = np.flatnonzero(frame["keep"] & (frame["split"] == "train"))
    kept = np.random.default_rng(seed).permutation(tiles)[: max(1, round(share * len(tiles)))]
    lost = np.setdiff1d(tiles, kept)
    frame.loc[frame.index[lost], "keep"] = False
    frame.loc[frame.index[lost], "reason"] = POOR[0]
    context = StageContext(project, files)
    whole = set_up_training(context)
    plan = prepare_training(
        frame,
        open_dataset(project, files),
        Statistics.from_dict(read_json(files.statistics)),
        model=project.settings.model,
        train=whole.settings.model_copy(update={"samples": len(whole.sampler)}),
        augmentation=project.settings.augmentation,
        tile_size=project.settings.tiles.size,
        fingerprint=f"{whole.fingerprint} {share}",
    )
    train(plan.with_store(open_store(whole, context)), out)
    return len(kept)


def main() -> None:
    """Train on every share with every seed and print the table."""
    arguments = options(__doc__).parse_args()
    logging.basicConfig(level=logging.WARNING, format="  %(message)s")
    project = load_project(arguments.project)
    found: dict[float, list[tuple[int, dict[str, float]]]] = {share: [] for share in SHARES}
    for seed in arguments.seeds:
        one = merged(project, {}, seed, arguments.epochs)
        files = run_until("tiles", one, arguments.out / f"whole-{seed}")
        for share in SHARES:
            out = arguments.out / f"{share:g}-{seed}"
            tiles = learn(one, files, share, out)
            found[share].append((tiles, best_epoch(read_history(out / "metrics.jsonl"))))
            print(f"seed {seed}, {tiles} tiles: mIoU {found[share][-1][1]['miou']:.3f}", flush=True)
    print(f"\n{arguments.epochs} epochs\n")
    print("| share of the tiles | tiles | mIoU | overall accuracy |\n|---|---|---|---|")
    for share, runs in found.items():
        miou, accuracy = ([best[key] for _, best in runs] for key in ("miou", "overall_accuracy"))
        tiles = ", ".join(str(count) for count, _ in runs)
        print(f"| {share:.0%} | {tiles} | {spread(miou)} | {spread(accuracy)} |")


if __name__ == "__main__":
    main()
