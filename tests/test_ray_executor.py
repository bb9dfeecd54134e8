"""Prediction on Ray: the map of one process, to the byte, whatever dies meanwhile."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cobertes.engines.engine import open_engine
from cobertes.errors import ClusterError, InputFileError, SettingsError
from cobertes.geo.blending import BLENDS, WindowPlan
from cobertes.geo.scene import open_scene
from cobertes.geo.windows import Window
from cobertes.learn.model_file import save_model
from cobertes.learn.unet import UNet
from cobertes.predict.predict import predict_map
from cobertes.predict.prediction_job import PredictionJob
from cobertes.progress import SILENT
from cobertes.scale import cluster as clusters
from cobertes.scale import ray_executor as ray_module
from cobertes.scale.ray_executor import divide, ray_executor
from cobertes.workflow.project import load_project
from cobertes.workflow.run import Run
from helpers.engines import TENS, engine_of, header_of
from helpers.rasters import ORIGIN, grid_at, write_raster

SHAPE = 200, 260
MEMORY = 1500
KINDS = ("confidence", "probabilities", "entropy", "second")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A scene with a corner that was not observed, and a model."""
    folder = tmp_path_factory.mktemp("elsewhere")
    values = np.random.default_rng(0).integers(1, 1000, (2, *SHAPE)).astype(np.uint16)
    values[:, :70, :90] = 0
    write_raster(folder / "scene.tif", values, grid_at(*SHAPE), nodata=0)
    torch.manual_seed(0)
    header = header_of()
    save_model(folder / "model.safetensors", UNet(header.network).state_dict(), header)
    return folder


def engine_in(folder, **options):
    return open_engine(folder / "model.safetensors", engine="torch", precision="fp32", threads=1, **options)


def predict(folder, out, *, engine=None, **options):
    """All products of the scene; returns their files' bytes and the report's counts."""
    out.mkdir(exist_ok=True)
    paths = {kind: out / f"{kind}.tif" for kind in KINDS}
    engine = engine or engine_in(folder)
    scenes = {"scene": open_scene([str(folder / "scene.tif")])}
    made = predict_map(
        engine, scenes, out / "map.tif", **paths, batch_size=4, memory=MEMORY, overwrite=True, **options
    )
    return contents(out), made.counts, made.windows, made.skipped


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


class Moments:
    """A progress bar that does something when it has moved so often."""

    def __init__(self, number, what):
        self.left, self.what = number, what

    @contextmanager
    def bar(self, name, total, unit):
        def advance(amount):
            self.left -= 1
            if self.left == 0:
                self.what()

        yield advance


# --- pieces ------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    overlap=st.integers(0, 20),
    blend=st.sampled_from(BLENDS),
    workers=st.integers(1, 50),
    batch=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_pieces_hold_each_wanted_block_once(shape, overlap, blend, workers, batch, seed):
    plan = WindowPlan.of(shape, 32, overlap, blend)
    work = PredictionJob({}, Window(0, 0, *shape), None, plan, ("map",), TENS, 1.0, batch)
    wanted = np.random.default_rng(seed).random((len(plan.rows), len(plan.cols))) < 0.7
    pieces = list(divide(work, wanted, workers))
    assert sorted(np.concatenate([*pieces, []]).tolist()) == np.flatnonzero(wanted).tolist()
    if blend == "interior":
        assert all(len(piece) % batch == 0 for piece in pieces[:-1]), "no window is computed for nothing"


def test_what_a_piece_sends_back_is_bounded():
    plan = WindowPlan.of((4000, 4000), 256, 64, "cosine")
    work = PredictionJob({}, Window(0, 0, 4000, 4000), None, plan, ("map", "probabilities"), TENS, 1.0, 1)
    wanted = np.ones((len(plan.rows), len(plan.cols)), bool)
    with patch.object(ray_module, "PIECE_BYTES", 4 * 2**20):
        for piece in divide(work, wanted, 1):
            mine = np.zeros_like(wanted)
            mine.flat[piece] = True
            assert work.pixels(mine) * 11 <= 4 * 2**20


# --- the same map ------------------------------------------------------------------------------------------


BOUNDS = (ORIGIN[0] + 310, ORIGIN[1] - 1790, ORIGIN[0] + 2010, ORIGIN[1] - 410)


@pytest.mark.parametrize(
    ("blend", "options"),
    [("interior", {}), ("cosine", {"bounds": BOUNDS}), ("gaussian", {"clip": True, "overlap": 13})],
)
def test_a_cluster_makes_the_map_of_one_process(tmp_path, folder, cluster, blend, options):
    if "clip" in options:
        wanted = np.zeros(SHAPE, np.uint8)
        wanted[50:150, 40:222] = 1
        options = options | {"clip": write_raster(tmp_path / "clip.tif", wanted, grid_at(*SHAPE), nodata=0)}
    here = predict(folder, tmp_path / "here", blend=blend, **options)
    with patch.object(ray_module, "PIECE_WINDOWS", 16), ray_executor(cluster.address, 1) as executor:
        there = predict(folder, tmp_path / "there", blend=blend, executor=executor, **options)
    assert here == there


def test_an_interrupted_map_goes_on_elsewhere_and_back(tmp_path, folder, cluster):
    """The pass on a cluster takes up that of one process, with holes, and the other way round."""

    def stop():
        raise KeyboardInterrupt

    whole = predict(folder, tmp_path / "whole", blend="cosine")
    with ray_executor(cluster.address, 1) as executor:
        for first, second in (({}, {"executor": executor}), ({"executor": executor}, {})):
            out = tmp_path / f"{len(first)}"
            with patch.object(ray_module, "PIECE_WINDOWS", 16), pytest.raises(KeyboardInterrupt):
                predict(folder, out, blend="cosine", progress=Moments(30, stop), **first)
            assert contents(out) == {}
            assert predict(folder, out, blend="cosine", resume="yes", **second)[0] == whole[0]


def test_a_node_that_dies_takes_nothing_with_it(tmp_path, folder, cluster):
    from ray._private.state import available_resources_per_node

    engine, killed = engine_in(folder, tta="turns"), []

    def kill():
        node = next(iter(cluster.worker_nodes))
        free = available_resources_per_node().get(node.node_id, {})
        cluster.remove_node(node, allow_graceful=False)
        killed.append(free.get("CPU", 0.0) == 0.0)

    whole = predict(folder, tmp_path / "whole", engine=engine)
    with patch.object(ray_module, "PIECE_WINDOWS", 4), ray_executor(cluster.address, 1) as executor:
        made = predict(folder, tmp_path / "made", engine=engine, executor=executor, progress=Moments(9, kill))
        cluster.pad()
    assert killed == [True], "the node was to die while it was at work"
    assert made == whole


def test_workers_take_the_model_as_it_is_now(tmp_path, folder, cluster):
    """One that is trained again keeps its path and its settings."""
    shutil.copy(folder / "scene.tif", tmp_path)
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        save_model(tmp_path / "model.safetensors", UNet(header_of().network).state_dict(), header_of())
        here = predict(tmp_path, tmp_path / "here")
        with ray_executor(cluster.address, 1) as executor:
            assert predict(tmp_path, tmp_path / "there", executor=executor) == here
        made.append(here[0])
    assert made[0] != made[1]


# --- what goes wrong ---------------------------------------------------------------------------------------


def test_a_scene_that_can_t_be_read_says_the_same_there(tmp_path, folder, cluster):
    broken = tmp_path / "scene.tif"
    values = np.random.default_rng(0).integers(1, 1000, (2, *SHAPE)).astype(np.uint16)
    write_raster(
        broken, values, grid_at(*SHAPE), nodata=0, tiled=True, blockxsize=64, blockysize=64, compress="lzw"
    )
    os.truncate(broken, broken.stat().st_size * 2 // 3)
    engine, scenes = engine_in(folder), {"scene": open_scene([str(broken)])}
    with (
        ray_executor(cluster.address, 1) as executor,
        pytest.raises(InputFileError, match=r"can't read rows .*scene\.tif"),
    ):
        predict_map(engine, scenes, tmp_path / "map.tif", memory=MEMORY, executor=executor)
    assert not (tmp_path / "map.tif").exists()


@pytest.mark.slow
def test_a_piece_that_kills_every_worker_ends_with_a_word_and_keeps_the_others(tmp_path, folder, cluster):
    alive = ray_module._compute_piece

    def dies(shared, piece):
        if piece[0] >= 60:
            os._exit(1)
        return alive(shared, piece)

    whole, out = predict(folder, tmp_path / "whole"), tmp_path / "map"
    with (
        patch.object(ray_module, "_compute_piece", dies),
        patch.object(ray_module, "PIECE_WINDOWS", 16),
        patch.object(ray_module, "RETRIES", 0),
        ray_executor(cluster.address, 1) as executor,
        pytest.raises(ClusterError, match="a task was lost again and again"),
    ):
        predict(folder, out, executor=executor)
    kept = json.loads((out / ".map.tif.partial" / "ledger.json").read_text(encoding="utf-8"))
    assert kept["done"]
    assert predict(folder, out, resume="yes")[0] == whole[0]


def test_what_does_not_fit_any_node_is_said(tmp_path, folder, cluster, caplog):
    import ray

    with ray_executor(cluster.address, 1):
        needs = {"CPU": 9.0, "GPU": 0.0, "memory": 3500 * 2.0**20}
        assert clusters.slots(ray, needs) == 0
        assert clusters.slots(ray, needs | {"CPU": 1.0}) == 2
        clusters.require_resources(ray, needs, "Give fewer --threads")
        clusters.require_resources(ray, {"CPU": 1.0, "GPU": 1.0, "memory": 0.0}, "Set tune.gpus = 0")
    assert (
        "no node has 9 processors and 3500 MB of memory (found: 0 processors and 4096 MB of memory; 1"
        in caplog.text
    )
    assert "no node has 1 processor and 1 GPU (found: 0 processors and 0 GPU; 1" in caplog.text


def test_what_does_not_fit_the_only_node_ends():
    class Alone:
        def nodes(self):
            return [{"Alive": True, "Resources": {"CPU": 4.0, "memory": 2.0**30}}]

    needs = {"CPU": 1.0, "GPU": 1.0, "memory": 0.0}
    with pytest.raises(
        SettingsError, match=r"no node has 1 processor and 1 GPU \(found: 4 processors and 0 GPU\)"
    ):
        clusters.require_resources(Alone(), needs, "Set tune.gpus = 0")


def test_a_node_with_another_model_at_the_same_path_is_said(tmp_path, folder, cluster):
    with (
        patch.object(ray_module, "model_digest", lambda specs: "of a newer one"),  # here, not on the nodes
        ray_executor(cluster.address, 1) as executor,
        pytest.raises(ClusterError, match=r"model\.safetensors on .* is not the model that this map is made with"),
    ):
        predict(folder, tmp_path / "map", executor=executor)


def test_an_address_that_is_none():
    with (
        pytest.raises(SettingsError, match=r"'scene\.tif' is no address of a Ray cluster"),
        ray_executor("scene.tif"),
    ):
        pass


def test_without_ray_the_pip_command_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingsError, match=r"pip install 'cobertes\[scale\]'"), ray_executor("local"):
        pass


def test_an_engine_made_by_hand_stays_here(tmp_path, folder, cluster):
    with ray_executor(cluster.address, 1) as executor, pytest.raises(SettingsError, match="made by hand"):
        predict(folder, tmp_path / "map", engine=engine_of(), executor=executor)


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_said(tmp_path, folder):
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "cobertes", "predict", "model.safetensors", "scene.tif", "-o", "map.tif"]
    done = subprocess.run(
        [*command, "--ray", "127.0.0.1:1"], capture_output=True, text=True, check=False, cwd=folder
    )
    assert done.returncode == 2, done.stderr
    assert "no Ray cluster at '127.0.0.1:1'" in done.stderr
    assert not (folder / "map.tif").exists()


@pytest.mark.slow
def test_the_command_on_a_ray_of_its_own(tmp_path, folder):
    pytest.importorskip("ray")
    command = [
        sys.executable, "-m", "cobertes", "predict", "model.safetensors", "scene.tif", "--memory", str(MEMORY), "--json",
        "--quiet", "--threads", "1", "--engine", "torch",
    ]  # fmt: skip
    answers = [
        json.loads(
            subprocess.run(
                [*command, "-o", str(tmp_path / name), *more],
                capture_output=True,
                text=True,
                check=True,
                cwd=folder,
            ).stdout
        )
        for name, more in (("here.tif", []), ("there.tif", ["--ray", "local"]))
    ]
    assert answers[0]["counts"] == answers[1]["counts"]
    assert (tmp_path / "here.tif").read_bytes() == (tmp_path / "there.tif").read_bytes()


@pytest.mark.slow
def test_a_piece_that_takes_more_memory_than_there_is_ends_with_a_word(tmp_path, folder):
    """Ray's monitor kills its worker, each time that it begins."""
    pytest.importorskip("ray")
    command = [
        sys.executable, "-m", "cobertes", "predict", "model.safetensors", "scene.tif", "-o", str(tmp_path / "map.tif"),
        "--ray", "local", "--memory", str(MEMORY), "--threads", "1", "--engine", "torch",
    ]  # fmt: skip
    little = {
        "RAY_memory_usage_threshold": "0.001",
        "RAY_memory_monitor_refresh_ms": "100",
        "RAY_task_oom_retry_delay_base_ms": "10",
    }
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, env=os.environ | little, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert "a task was lost again and again (OutOfMemoryError" in done.stderr


def test_a_ray_of_this_machine_takes_no_more_than_this_process_may():
    pytest.importorskip("ray")
    with (
        patch("os.sched_getaffinity", lambda process: {3, 5}, create=True),
        patch("ray._private.utils.get_num_cpus", lambda **options: 8.0),
    ):
        assert clusters.available_cpus() == 2
    with (
        patch("os.sched_getaffinity", lambda process: set(range(64)), create=True),
        patch("ray._private.utils.get_num_cpus", lambda **options: 0.5),
    ):
        assert clusters.available_cpus() == 1


# --- many areas --------------------------------------------------------------------------------------------


class Recorded:
    """What bars are told."""

    def __init__(self):
        self.told = []

    @contextmanager
    def bar(self, name, total, unit):
        moved = []
        yield lambda amount, note="": moved.append(amount)
        self.told.append((name, total, unit, sum(moved)))


@pytest.fixture
def many(tmp_path, one_thread):
    """A project of five areas, to be mapped by a model."""
    header = header_of(window=16)
    save_model(tmp_path / "model.safetensors", UNet(header.network).state_dict(), header)
    areas = ""
    for number in range(5):
        values = np.random.default_rng(number).integers(1, 1000, (2, 40, 50)).astype(np.uint16)
        write_raster(tmp_path / f"{number}.tif", values, grid_at(40, 50))
        areas += f'[[area]]\nname = "a{number}"\nscenes = "{number}.tif"\n'
    how = 'model = "model.safetensors"\nengine = "torch"\nprecision = "fp32"\nmemory = 1500\nbatch-size = 1\n'
    (tmp_path / "project.toml").write_text(f'name = "many"\n{areas}[predict]\n{how}', encoding="utf-8")
    return load_project(tmp_path / "project.toml")


def test_many_areas_are_mapped_at_once_and_as_one_by_one(tmp_path, many, cluster):
    Run(many, tmp_path / "here").run(only="predict")
    bars = Recorded()
    Run(many, tmp_path / "there", executor=lambda stop: ray_executor(cluster.address, 1, stop), progress=bars).run(
        only="predict"
    )
    assert bars.told == [("maps", 0.01, "Mpx", pytest.approx(0.01))]
    assert contents(tmp_path / "here" / "maps") == contents(tmp_path / "there" / "maps")


@pytest.fixture
def interruptible():
    """SIGINT interrupts, also where the tests run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("end", [InputFileError, KeyboardInterrupt])
def test_when_one_of_many_maps_fails_all_stop_and_keep_what_is_finished(tmp_path, many, cluster, end):
    plain = ray_module._compute_piece

    def piece_of(shared, piece):
        scene = next(iter(shared.job.scenes.values()))
        if end is InputFileError and Path(scene.files[0]).name == "1.tif" and piece[0] > 3:
            raise InputFileError("can't read it")
        time.sleep(0.3)  # of work: other maps are not finished when one fails
        return plain(shared, piece)

    def executor(stop):
        return ray_executor(cluster.address, 1, stop)

    Run(many, tmp_path / "whole").run(only="predict")
    bars = Moments(12, lambda: os.kill(os.getpid(), signal.SIGINT)) if end is KeyboardInterrupt else SILENT
    with (
        patch.object(ray_module, "_compute_piece", piece_of),
        patch.object(ray_module, "PIECE_WINDOWS", 1),
        pytest.raises(end),
    ):
        Run(many, tmp_path / "run", executor=executor, progress=bars).run(only="predict")
    kept = (tmp_path / "run" / "maps").glob(".*.partial/ledger.json")
    unfinished = [json.loads(path.read_text(encoding="utf-8"))["done"] for path in kept]
    assert len(unfinished) > 1
    assert any(unfinished)
    Run(many, tmp_path / "run", executor=executor).run(only="predict")
    assert contents(tmp_path / "run" / "maps") == contents(tmp_path / "whole" / "maps")


# --- the environment ---------------------------------------------------------------------------------------


def test_environment_variables_are_restored_whatever_happens(monkeypatch):
    monkeypatch.setenv("COBERTES_TEST_SET", "before")
    monkeypatch.delenv("COBERTES_TEST_UNSET", raising=False)
    seen = []

    def fail():
        with clusters.environment({"COBERTES_TEST_SET": "a", "COBERTES_TEST_UNSET": "b"}):
            seen.extend([os.environ["COBERTES_TEST_SET"], os.environ["COBERTES_TEST_UNSET"]])
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert seen == ["a", "b"]
    assert os.environ["COBERTES_TEST_SET"] == "before"
    assert "COBERTES_TEST_UNSET" not in os.environ


def test_a_local_cluster_needs_no_writable_home_and_leaves_the_environment(tmp_path):
    """Ray would write a token for a cluster of this machine alone, too."""
    (tmp_path / "home").write_text("a file: no folder can be made in it")
    code = """
import os
from cobertes.scale.cluster import LOCAL_VARIABLES, VARIABLES, connected
with connected("local") as ray:
    assert ray.get(ray.remote(lambda: 6 * 7).remote()) == 42
left = {*VARIABLES, *LOCAL_VARIABLES} & set(os.environ)
assert not left, left
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "HOME": str(tmp_path / "home")
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
