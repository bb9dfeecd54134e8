"""What is judged is what the map says, however its windows blend and however many views are averaged."""

import numpy as np
import pytest
import torch

from cobertes.accuracy.calibration import LogitSample
from cobertes.engines.engine import Engine, with_tta
from cobertes.evaluation.held_out_map import HeldOutMap
from cobertes.evaluation.model_evaluation import ModelEvaluator
from cobertes.geo.blending import BLENDS
from cobertes.geo.scene import open_scene
from cobertes.labels.legend import IGNORE_INDEX
from cobertes.learn.model_file import ModelHeader
from cobertes.learn.unet import UNetSettings
from cobertes.predict.predict import predict_map
from cobertes.tiles.split import Part
from helpers.rasters import read_raster
from helpers.samples import EXACT, LEGEND, area_with_letters, coordinate_project

K = len(LEGEND)
SIZE = 32


def by_position_in_window(x):
    """Logits that differ from window to window, so that seams and blending can be seen."""
    down = torch.linspace(0, 1.3, x.shape[2])[None, :, None]
    right = torch.linspace(0, 2.1, x.shape[3])[None, None, :]
    return torch.stack([torch.sin((k + 2) * (9 * x[:, 0] + 7 * x[:, 1] + down + right)) for k in range(K)], dim=1)


@pytest.fixture
def project(tmp_path):
    """170 x 170 px, held-out blocks at the border, beside each other and alone; not multiples of the windows."""
    return area_with_letters(
        coordinate_project(tmp_path, (170, 170)), ["vttte", "ttvvt", "tttvt", "ettt-", "vtttv"], 34
    )


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("overlap", [0, 7, 16, 27])
@pytest.mark.parametrize("turns", [1, 4])
def test_the_judged_pixels_are_the_map_s(tmp_path, project, blend, overlap, turns):
    header = ModelHeader(UNetSettings(2, K, "scratch", 4, 2), EXACT, LEGEND, 10.0, SIZE, {})
    engine = Engine(header, with_tta(by_position_in_window, range(turns)), "by hand")
    ground = project.ground
    predict_map(
        engine, {"scene": open_scene([str(tmp_path / "here-scene.tif")])}, tmp_path / "m.tif", confidence=tmp_path / "c.tif", overlap=overlap,
        blend=blend, batch_size=3,
    )  # fmt: skip
    index = LEGEND.index_table()
    codes, confidence = index[read_raster(tmp_path / "m.tif")], read_raster(tmp_path / "c.tif")
    labels = index[read_raster(ground.labels["here"])]
    held_out, sample = HeldOutMap(ground, SIZE, overlap, blend), LogitSample()
    judgement = ModelEvaluator(engine, held_out, {}, 10, batch_size=4).run(Part.VALIDATION, sample=sample)
    judged = np.zeros(labels.shape, bool)
    for block in ground.split.areas["here"].windows("v"):
        judged[block.slices] = True
    judged &= labels != IGNORE_INDEX
    expected = np.zeros((K, K), int)
    np.add.at(expected, (labels[judged], codes[judged]), 1)
    assert np.array_equal(judgement.matrices.total.counts, expected)
    assert (expected > 0).sum() > K

    # the temperature is fitted to the logits that the map's confidence comes from
    logits = torch.from_numpy(np.concatenate(sample.logits))
    found = np.rint(100 * logits.softmax(dim=1).amax(dim=1).numpy())
    assert len(found) == judged.sum()
    assert np.abs(np.sort(found) - np.sort(confidence[judged].astype(float))).max() <= 1


def test_a_second_pass_is_lent_nothing_by_the_first(project):
    header = ModelHeader(UNetSettings(2, K, "scratch", 4, 2), EXACT, LEGEND, 10.0, SIZE, {})
    engine, held_out = (
        Engine(header, by_position_in_window, "by hand"),
        HeldOutMap(project.ground, SIZE, 16, "cosine"),
    )
    passes = [
        ModelEvaluator(engine, held_out, {}, 10).run(part).counts
        for part in (Part.VALIDATION, Part.TEST, Part.VALIDATION)
    ]
    assert np.array_equal(passes[0], passes[2])


def test_only_windows_with_a_share_in_held_out_ground_are_planned(project):
    unblended = HeldOutMap(project.ground, SIZE, 8, "interior")
    blended = HeldOutMap(project.ground, SIZE, 8, "cosine")
    assert all(item[1].interior.height for item in unblended.windows(Part.TEST))
    lending = [item for item in blended.windows(Part.TEST) if not item[1].interior.height]
    assert lending
    windows = {item[1].window for item in blended.windows(Part.TEST)}
    assert len(windows) < blended.plans["here"].count
