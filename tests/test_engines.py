"""Engines: the same answer whatever runs the network, and a clear word where something is missing."""

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from cobertes.engines import quantize, runtimes
from cobertes.engines.engine import Engine, ensemble, open_engine, with_tta
from cobertes.engines.onnx_export import export_onnx
from cobertes.engines.quantize import quantize_model
from cobertes.engines.runtimes import choose_runtime, is_quantized, quantized_path
from cobertes.errors import DeviceMemoryError, InputFileError, ModelFileError, SettingsError
from cobertes.geo.scene import open_scene
from cobertes.learn.architectures import build_network
from cobertes.learn.devices import synchronize, without_tf32
from cobertes.learn.encoding import Inputs, turned
from cobertes.learn.inference import each_season
from cobertes.learn.model_file import ModelHeader, save_model
from cobertes.learn.unet import UNet, UNetSettings
from cobertes.predict.predict import predict_map
from cobertes.settings import EngineName
from helpers.engines import SCALE, TENS, code_at, engine_of, header_of, reads_coordinates
from helpers.rasters import coordinates, grid_at, read_raster, write_raster
from helpers.samples import LEGEND, area_with_letters, coordinate_project

EXTRAS = ("openvino", "nncf", "onnx", "onnxruntime")


pytestmark = pytest.mark.usefixtures("one_thread")


def model_in(folder, header=None, seed=0):
    """A network with statistics of random pixels, so that many classes occur."""
    header = header or header_of()
    torch.manual_seed(seed)
    network = UNet(header.network)
    for _ in range(20):
        network(3 * torch.randn(4, header.network.channels, 32, 32))
    folder.mkdir(exist_ok=True)
    save_model(folder / "m.safetensors", network.state_dict(), header)
    return folder / "m.safetensors"


def windows(count=3, size=32, channels=2):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(count, channels, size, size)).astype(np.float32))
    return x.contiguous(memory_format=torch.channels_last)


# --- the choice --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("installed", "units", "asked", "expected"),
    [
        (True, True, ("auto", "auto", "auto"), ("openvino", "cpu", "bf16", "fastest on processors, the processor has bf16 units")),
        (True, False, ("auto", "cpu", "auto"), ("openvino", "cpu", "fp32", "fastest on processors, no bf16 units")),
        (False, True, ("auto", "cpu", "auto"), ("torch", "cpu", "bf16", "OpenVINO is not installed, the processor has bf16 units")),
        (False, False, ("auto", "cpu", "fp32"), ("torch", "cpu", "fp32", "OpenVINO is not installed")),
        (True, True, ("torch", "cpu", "fp32"), ("torch", "cpu", "fp32", "as set")),
        (True, True, ("onnx", "cpu", "auto"), ("onnx", "cpu", "fp32", "its only precision")),
        (True, True, ("auto", "cpu", "int8"), ("openvino", "cpu", "int8", "int8 asked for")),
    ],
)  # fmt: skip
def test_what_is_chosen_and_why(monkeypatch, installed, units, asked, expected):
    if torch.cuda.is_available() and asked[1] == "auto":
        pytest.skip("needs a machine without a GPU, which would go first")
    monkeypatch.setattr(runtimes, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr("cobertes.learn.devices._has_bf16_units", lambda: units)
    monkeypatch.setattr(runtimes, "require_extra", lambda module, extra: object())
    found = choose_runtime(*asked)
    assert (found.engine, found.device, found.precision, found.reason) == expected


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("openvno", "cpu", "auto"), r"no engine 'openvno'\. Did you mean 'openvino'"),
        (("torch", "cpu", "int8"), "engine 'torch' runs in fp32, bf16, not in int8"),
        (("onnx", "cpu", "bf16"), "engine 'onnx' runs in fp32, not in bf16"),
        (("auto", "cpu", "fp16"), r"no precision 'fp16'\. Did you mean 'bf16'"),
    ],
)
def test_what_does_not_exist_is_told(asked, message):
    with pytest.raises(SettingsError, match=message):
        choose_runtime(*asked)


@pytest.mark.parametrize(
    ("engine", "module", "extra"), [("openvino", "openvino", "openvino"), ("onnx", "onnxruntime", "export")]
)
def test_a_missing_extra_names_the_pip_command(tmp_path, monkeypatch, engine, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        SettingsError, match=rf"{module} is not installed. Install it: pip install 'cobertes\[{extra}\]'"
    ):
        open_engine(model_in(tmp_path), device="cpu", engine=engine)


def test_exports_name_their_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SettingsError, match=r"onnx is not installed.*pip install 'cobertes\[export\]'"):
        export_onnx(model_in(tmp_path), tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_extras_load_only_where_they_are_used():
    code = f"""
import sys, cobertes, cobertes.cli.main, cobertes.engines.engine, cobertes.predict.predict, cobertes.engines.quantize
import cobertes.engines.onnx_export
loaded = set({EXTRAS}) & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_settings_list_every_engine():
    assert get_args(EngineName) == ("auto", *runtimes.RUNTIMES)


# --- the answer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["openvino", "onnx"])
@pytest.mark.parametrize("size", [32, 45])
def test_engines_agree_in_fp32(tmp_path, engine, size):
    pytest.importorskip("openvino" if engine == "openvino" else "onnxruntime")
    path = model_in(tmp_path)
    plain = open_engine(path, device="cpu", precision="fp32", engine="torch")
    other = open_engine(path, device="cpu", precision="fp32", engine=engine)
    x = windows(size=size)
    expected = plain.logits(x)
    # were OpenVINO left to its default of bf16, this would be off by a hundredth
    torch.testing.assert_close(other.logits(x), expected, rtol=1e-4, atol=1e-4)
    # a smaller batch, then a larger one, of the same windows
    torch.testing.assert_close(other.logits(x[:2]), expected[:2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other.logits(torch.cat([x, x]))[3:], expected, rtol=1e-4, atol=1e-4)
    assert len(expected.argmax(1).unique()) > 3


@pytest.mark.parametrize("engine", ["openvino", "onnx"])
@pytest.mark.parametrize(
    "changes",
    [{"seasons": 2}, {"upsampling": "bilinear"}, {"encoder": "resnet18"}]
    + [{"encoder": "resnet18", "architecture": name} for name in ("unet++", "deeplabv3+", "segformer")],
    ids=lambda changes: "-".join(str(value) for value in changes.values()),
)
def test_every_network_is_the_same_in_every_engine(tmp_path, engine, changes):
    pytest.importorskip("openvino" if engine == "openvino" else "onnxruntime")
    header = header_of(("april", "august"), window=64)
    torch.manual_seed(0)
    network = build_network(replace(header.network, **changes)).eval()
    save_model(tmp_path / "m.safetensors", network.state_dict(), replace(header, network=network.settings))
    plain, other = (
        open_engine(tmp_path / "m.safetensors", device="cpu", precision="fp32", engine=name)
        for name in ("torch", engine)
    )
    x = windows(5, 64, 4)
    x[1, :2], x[2, 2:, :20] = 0, 0  # a season that was not observed, in a whole window and in a part
    for batch in (x, x[:2], torch.cat([x, x])):
        torch.testing.assert_close(other.logits(batch), plain.logits(batch), rtol=1e-3, atol=1e-4)


def test_a_gpu_without_enough_memory_is_told(tmp_path, monkeypatch):
    engine = open_engine(model_in(tmp_path), device="cpu", precision="fp32", engine="torch")

    def full(self, x):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(UNet, "forward", full)
    with pytest.raises(
        DeviceMemoryError, match=r"3 windows of 32 x 32 px do not fit .* a smaller --batch or --window"
    ):
        engine.logits(windows())


@pytest.mark.parametrize(("kind", "waited"), [("cpu", []), ("cuda", ["cuda"]), ("mps", ["mps"])])
def test_what_is_timed_has_been_computed(monkeypatch, kind, waited):
    found = []
    for name in ("cuda", "mps"):
        monkeypatch.setattr(getattr(torch, name), "synchronize", lambda name=name: found.append(name))
    synchronize(kind)
    assert found == waited


def test_fp32_is_not_rounded_to_less_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with without_tf32():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32

    class Watched(torch.nn.Module):
        def forward(self, x):
            rounded.append(torch.backends.cudnn.allow_tf32)
            return x

    rounded = []
    runtimes._torch_forward(Watched(), "cpu", "fp32")(torch.zeros(1, 1, 4, 4))
    assert rounded == [False]
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="needs Linux, which has the processors of a thread"
)
@pytest.mark.parametrize("engine", ["torch", "openvino", "onnx"])
def test_no_thread_is_bound_to_one_processor(tmp_path, engine):
    """Else two processes on one machine, as workers of a cluster are, compute on the same one."""
    pytest.importorskip({"openvino": "openvino", "onnx": "onnxruntime"}.get(engine, "torch"))
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("needs two processors")
    engine = open_engine(model_in(tmp_path), device="cpu", precision="fp32", engine=engine, threads=1)
    x, found = windows(8, 256), set()
    engine.logits(x)
    worker = threading.Thread(target=lambda: [engine.logits(x) for _ in range(3)])
    worker.start()
    while worker.is_alive():
        for task in os.listdir("/proc/self/task"):
            with suppress(ProcessLookupError):  # the thread has ended
                found.add(frozenset(os.sched_getaffinity(int(task))))
    assert found == {frozenset(allowed)}


@pytest.mark.parametrize(("engine", "precision"), [("torch", "fp32"), ("torch", "bf16"), ("openvino", "fp32"), ("openvino", "bf16"), ("onnx", "fp32")])  # fmt: skip
def test_a_window_s_answer_does_not_depend_on_its_batch_or_on_threads(tmp_path, engine, precision):
    pytest.importorskip({"openvino": "openvino", "onnx": "onnxruntime"}.get(engine, "torch"))
    found = open_engine(model_in(tmp_path), device="cpu", precision=precision, engine=engine)
    x = windows(4)
    answer = found.logits(x).clone()
    order = [2, 0, 3, 1]
    assert torch.equal(found.logits(x[order].contiguous(memory_format=torch.channels_last)), answer[order])
    alone = x.clone()
    alone[1:] = 0
    if engine == "openvino":  # torch's convolutions of few channels add up otherwise in other numbers of threads
        torch.set_num_threads(2)
    assert torch.equal(found.logits(alone)[0], answer[0])


def test_views_are_averaged_in_place(tmp_path):
    engine = open_engine(model_in(tmp_path), device="cpu", precision="fp32", engine="torch")
    several = open_engine(tmp_path / "m.safetensors", device="cpu", precision="fp32", engine="torch", tta="turns")
    x = windows(1, 33)
    total = np.zeros((10, 33, 33))
    for turn in range(8):
        seen = np.stack([turned(band, turn) for band in x[0].numpy()])
        answer = engine.logits(torch.from_numpy(seen[None])).softmax(1)[0].numpy()
        back = turn if turn >= 4 else -turn % 4  # a mirror image and a turn undo themselves
        total += np.stack([turned(share, back) for share in answer])
    np.testing.assert_allclose(several.logits(x).exp()[0].numpy(), total / 8, atol=1e-5)
    assert several.how.endswith("mean of 8 views")
    with pytest.raises(SettingsError, match=r"no views 'flip'\. Did you mean 'flips'"):
        open_engine(tmp_path / "m.safetensors", tta="flip")


def test_a_model_that_sees_pixels_alone_says_the_same_in_all_views():
    x = torch.from_numpy(coordinates((24, 24)).astype(np.float32)[None] / SCALE)
    one, all_ = (with_tta(reads_coordinates, turns)(x).softmax(1) for turns in ((0,), range(8)))
    torch.testing.assert_close(one, all_)


def test_an_ensemble_is_the_mean_of_its_models_each_with_its_own_normalisation(tmp_path):
    other = header_of()
    other = replace(
        other, inputs=Inputs(("scene",), ("band1", "band2"), np.full((1, 2), 500.0), np.full((1, 2), 900.0))
    )
    paths = [model_in(tmp_path / "a"), model_in(tmp_path / "b", other, seed=9)]
    engines = [open_engine(path, device="cpu", precision="fp32", engine="torch") for path in paths]
    engines[1] = replace(engines[1], temperature=2.0)
    both = ensemble(engines)
    values = np.random.default_rng(0).integers(1, 3000, (2, 32, 32)).astype(np.int32)
    values[:, :4] = 0
    scenes = {"scene": open_scene([str(write_raster(tmp_path / "s.tif", values, grid_at(32, 32)))])}
    window = predict_map.__globals__["Window"](0, 0, 32, 32)
    x, valid = both.read(scenes, window)
    np.testing.assert_array_equal(valid, values[0] > 0)
    expected = 0
    for engine in engines:
        own, _ = engine.read(scenes, window)
        expected = expected + (engine.logits(torch.from_numpy(own[None])) / engine.temperature).softmax(1) / 2
    torch.testing.assert_close(both.logits(torch.from_numpy(x[None])).exp(), expected, rtol=1e-4, atol=1e-5)
    assert both.how.startswith("mean of 2 models: torch on cpu")
    assert both.identity not in (engines[0].identity, "")
    made = predict_map(both, scenes, tmp_path / "map.tif")
    assert made.counts[0] == 4 * 32
    assert ensemble(engines[:1]) is engines[0]
    warmer = ensemble([engines[0], replace(engines[1], temperature=1.5)])
    assert warmer.identity != both.identity  # its classes may be others
    assert [header.inputs for header in both.members] == [engine.header.inputs for engine in engines]
    with pytest.raises(
        ModelFileError, match=r"must agree, but one has bands \['band1', 'band2'\], one \['band1'\]"
    ):
        ensemble([engines[0], engine_of(bands=("band1",))])


def separate(scene_header=None):
    shape = (2, 2)
    inputs = Inputs(("april", "august"), ("band1", "band2"), np.zeros(shape), np.full(shape, SCALE), "separate")
    return ModelHeader(UNetSettings(2, len(TENS), "scratch", 4, 2), inputs, TENS, 10.0, 32, {})


def test_a_season_may_be_missing_where_the_model_was_trained_to_do_without(tmp_path, caplog):
    caplog.set_level("INFO")
    values = coordinates((40, 50))
    scene = open_scene([str(write_raster(tmp_path / "s.tif", values, grid_at(40, 50)))])
    header = separate()
    engine = Engine(header, each_season(reads_coordinates, header.inputs), "by hand")
    predict_map(engine, {"august": scene}, tmp_path / "map.tif", confidence=tmp_path / "c.tif")
    np.testing.assert_array_equal(read_raster(tmp_path / "map.tif"), code_at(*values))
    assert "no scene of season april" in caplog.text
    stacked = engine_of(lambda x: reads_coordinates(x[:, 2:]), seasons=("april", "august"))
    with pytest.raises(SettingsError, match="needs a scene of season 'april', found august"):
        predict_map(stacked, {"august": scene}, tmp_path / "b.tif")
    dropped = {"augmentation": {"season-dropout": {"probability": 0.2}}}
    stacked = replace(stacked, header=replace(stacked.header, training=dropped))
    predict_map(stacked, {"august": scene}, tmp_path / "b.tif")
    np.testing.assert_array_equal(read_raster(tmp_path / "b.tif"), code_at(*values))
    with pytest.raises(SettingsError, match="needs a scene of season 'april', found winter"):
        predict_map(engine, {"winter": scene}, tmp_path / "c.tif")


def test_the_temperature_beside_a_model_is_used(tmp_path, caplog):
    path = model_in(tmp_path)
    assert open_engine(path, device="cpu", engine="torch").temperature == 1.0
    (tmp_path / "calibration.json").write_text(
        json.dumps({"temperature": 1.7, "model": None, "views": "none", "more": 1})
    )
    assert open_engine(path, device="cpu", engine="torch", tta="flips").temperature == 1.0
    assert "is of other views than 'flips': confidences are not calibrated" in caplog.text
    assert open_engine(path, device="cpu", engine="torch").temperature == 1.7
    for text in ("{}", '{"temperature": "hot"}', "", '{"temperature": 0}'):
        (tmp_path / "calibration.json").write_text(text)
        with pytest.raises(InputFileError, match=r"calibration\.json"):
            open_engine(path, device="cpu", engine="torch")


# --- int8 and export ---------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path):
    """Labelled ground in blocks, and a model for it."""
    project = area_with_letters(
        coordinate_project(tmp_path, (170, 170)), ["vttte", "ttvvt", "tttvt", "ettt-", "vtttv"], 34
    )
    inputs = Inputs(("scene",), ("band1", "band2"), np.full((1, 2), 85.0), np.full((1, 2), 50.0))
    header = ModelHeader(
        UNetSettings(2, len(LEGEND), "scratch", 4, 2), inputs, LEGEND, 10.0, 32, {"fingerprint": "x"}
    )
    return project.ground, model_in(tmp_path, header)


@pytest.mark.slow
def test_int8_is_kept_where_it_costs_little_and_refused_where_not(run_folder, monkeypatch):
    pytest.importorskip("nncf")
    ground, path = run_folder
    with pytest.raises(SettingsError, match="has no int8 version"):
        open_engine(path, device="cpu", precision="int8")
    monkeypatch.setattr(quantize, "MAX_LOSS", -2.0)
    with pytest.raises(
        ModelFileError, match=r"int8 would lose too much: mIoU 0\.\d+ .* is the most that may be lost"
    ):
        quantize_model(path, ground)
    assert not list(path.parent.glob("*.int8.*"))
    monkeypatch.setattr(quantize, "MAX_LOSS", 1.0)
    scores = quantize_model(path, ground)
    assert set(scores) == {"fp32", "int8"}
    assert is_quantized(path)
    engine = open_engine(path, device="cpu", precision="int8")
    assert engine.how == "openvino on cpu in int8 (int8 asked for)"
    plain = open_engine(path, device="cpu", precision="fp32", engine="torch")
    x = windows(5)
    assert (engine.logits(x).argmax(1) == plain.logits(x).argmax(1)).float().mean() > 0.8
    with pytest.raises(SettingsError, match="for windows of 32 px, not 48"):
        engine.logits(windows(1, 48))
    path.touch()  # another model, as far as anybody knows
    assert not is_quantized(path)
    assert quantized_path(path).name == "m.int8.xml"


@pytest.mark.parametrize("seasons", ["stack", "separate"])
def test_an_exported_model_says_what_the_map_says(tmp_path, seasons):
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    header = header_of(("april", "august")) if seasons == "stack" else separate()
    header = replace(
        header, inputs=replace(header.inputs, mean=np.full((2, 2), 700.0), std=np.full((2, 2), 500.0))
    )
    path = model_in(tmp_path, header)
    assert export_onnx(path, tmp_path / "m.onnx") == 32
    rng = np.random.default_rng(0)
    scenes = {}
    for season in ("april", "august"):
        values = rng.integers(1, 3000, (2, 32, 32)).astype(np.int32)
        values[:, :10, :10] = 0 if season == "april" else 5
        scenes[season] = open_scene([str(write_raster(tmp_path / f"{season}.tif", values, grid_at(32, 32)))])
    engine = open_engine(path, device="cpu", precision="fp32", engine="torch")
    predict_map(engine, scenes, tmp_path / "map.tif", probabilities=tmp_path / "p.tif")
    pixels = np.concatenate([read_raster(tmp_path / f"{season}.tif") for season in scenes]).astype(np.float32)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {"pixels": np.stack([pixels, pixels])})[0]
    assert found.shape == (2, 10, 32, 32)
    assert np.abs(100 * found[1] - read_raster(tmp_path / "p.tif")).max() < 0.6
    facts = {
        entry.key: json.loads(entry.value)
        for entry in onnx.load(tmp_path / "m.onnx").metadata_props
        if entry.key != "producer"
    }
    assert facts["bands"] == ["april:band1", "april:band2", "august:band1", "august:band2"]
    assert facts["classes"][0] == {"code": 10, "key": "class-10", "name": "Class & 10", "colour": "#0a00ff"}
    assert facts["resolution"] == 10.0
