"""The search for settings: what may be searched, what comes out, what survives interruptions and lost nodes."""

import csv
import json
import re
import threading
import tomllib
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from pydantic import ValidationError

from cobertes.errors import ClusterError, InputFileError, SettingsError
from cobertes.learn.metrics_log import read_history
from cobertes.scale import tuning
from cobertes.scale.search_space import drawn_values, position, require_space, with_values
from cobertes.scale.trials import Trial, best_trial, read_trials, train_trial, trial_settings
from cobertes.scale.tune_report import best_toml
from cobertes.scale.tuning import tune
from cobertes.settings import AreaSettings, Range, Settings
from cobertes.toml_io import toml_text
from cobertes.workflow.project import load_project
from cobertes.workflow.run import Run
from cobertes.workflow.run_folder import open_run
from helpers.interruptions import wait_until
from helpers.projects import write_ground, write_project

SEARCH = """
[tune]
trials = 4
epochs = 8
grace-epochs = 2
algorithm = "{algorithm}"
seed = 2
[tune.search]
"train.learning-rate" = {{ log-uniform = [1e-3, 1e-2] }}
"model.encoder" = {{ choice = ["scratch", "resnet999"] }}
"""


def settings_with(**search):
    area = AreaSettings(scenes="scene.tif")
    return Settings.model_validate({"name": "x", "area": [area], "tune": {"search": search}})


def project_in(folder, algorithm="random"):
    write_ground(folder)
    path = write_project(folder)
    path.write_text(path.read_text(encoding="utf-8") + SEARCH.format(algorithm=algorithm), encoding="utf-8")
    return load_project(path)


# --- what may be searched ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        (
            "train.learning-rat",
            {"uniform": [1, 2]},
            r"no setting \"train.learning-rat\"\. Did you mean 'train.learning-rate'",
        ),
        ("trian.epochs", {"integer": [1, 2]}, r"no such section\. Did you mean 'train'"),
        ("augmentation.jitter.strenght", {"uniform": [0, 0.1]}, "Did you mean 'augmentation.jitter.strength'"),
        ("augmentation.jitter", {"uniform": [0, 0.1]}, "is a table.*augmentation.jitter.strength"),
        ("tiles.size", {"integer": [16, 32]}, "trials share labels, tiles and split"),
        ("split.seed", {"integer": [1, 9]}, "trials share labels, tiles and split"),
        ("train.epochs", {"integer": [1, 9]}, "can't be searched: set tune.epochs"),
        ("train.targets", {"choice": ["labels", "fractions"]}, "learn from the same labels"),
        (
            "train.batch-size",
            {"integer": [0, 9]},
            r"\"train.batch-size\" may become 0: 'train.batch-size'.*greater",
        ),
        ("train.loss", {"choice": ["dice", "dise"]}, "may become 'dise'"),
        ("augmentation.jitter.strength", {"uniform": [0, 1.5]}, r"may become 1\.5"),
    ],
)
def test_what_can_t_be_searched_is_said_before_anything_is_done(key, values, message):
    with pytest.raises(SettingsError, match=message):
        require_space(settings_with(**{key: values}))


def test_a_search_for_nothing_says_how_to_ask():
    with pytest.raises(SettingsError, match="nothing to search.*log-uniform"):
        require_space(settings_with())


def test_trials_without_a_gpu_of_their_own_take_none():
    searched = {"train.batch-size": {"integer": [2, 4]}}
    assert trial_settings(settings_with(**searched), {}).train.device == "cpu"
    shared = with_values(settings_with(**searched), {"tune.gpus": 0.5})
    assert trial_settings(shared, {}).train.device == "auto"
    named = with_values(settings_with(**searched), {"train.device": "cuda"})
    with pytest.raises(SettingsError, match=r"train\.device is cuda, but trials take no GPU: set tune\.gpus"):
        require_space(named)
    require_space(with_values(named, {"tune.gpus": 1.0}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"uniform": [2, 1]}, "first number must be less"),
        ({"log-uniform": [0, 1]}, "numbers above 0"),
        ({"choice": [1], "uniform": [0, 1]}, "needs one of"),
        ({}, "needs one of"),
        ({"choice": []}, "at least 1"),
        ({"integer": [1.5, 3]}, "integer"),
    ],
)
def test_a_range_is_one_of_four_things(values, message):
    with pytest.raises(ValidationError, match=message):
        Range.model_validate(values)


def test_values_are_set_at_any_depth_and_the_rest_stays():
    before = settings_with(**{"train.loss": {"choice": ["dice", {"cross-entropy": 1.0, "dice": 0.5}]}})
    require_space(before)
    config = {"train.loss": 1}
    drawn = drawn_values(before.tune.search, config)
    after = with_values(before, {**drawn, "augmentation.noise.strength": 0.25, "model.width": 4})
    assert after.train.loss == {"cross-entropy": 1.0, "dice": 0.5}
    assert after.augmentation.noise.strength == 0.25
    assert after.augmentation.noise.probability == before.augmentation.noise.probability
    changed = after.model_copy(
        update={"train": before.train, "augmentation": before.augmentation, "model": before.model}
    )
    assert changed == before


def test_settings_of_a_search_survive_being_written(tmp_path):
    choices = ["dice", {"cross-entropy": 1.0, "dice": 0.5}]
    settings = settings_with(**{"train.loss": {"choice": choices}, "model.decoder": {"choice": [[64, 32], [16]]}})
    text = toml_text(settings.model_dump(by_alias=True, mode="json"))
    assert Settings.model_validate(tomllib.loads(text)) == settings


def test_positions_lie_between_the_ends():
    assert position(Range(log_uniform=(1e-4, 1e-2)), 1e-3) == pytest.approx(0.5)
    assert position(Range(uniform=(2, 6)), 3) == pytest.approx(0.25)
    assert position(Range(integer=(4, 8)), 8) == 1.0
    assert [position(Range(choice=["a", {"b": 1}]), value) for value in ("a", {"b": 1})] == [0.25, 0.75]


# --- what comes out ----------------------------------------------------------------------------------------


def test_the_best_trial_is_the_earliest_of_the_highest_score():
    def trial(number, *scores):
        history = [{"epoch": i, "miou": score, "elapsed": 1.0} for i, score in enumerate(scores, start=1)]
        return Trial(str(number), number, {}, history, "fp32", None, True)

    nan = float("nan")
    trials = [trial(1), trial(2, nan), trial(3, 0.2, 0.5, 0.4), trial(4, 0.5), trial(5, 0.1)]
    found = best_trial(trials)
    assert (found.number, found.score, found.best_epoch) == (3, 0.5, 2)
    assert best_trial(trials[:2]) is None


def test_paths_of_the_best_project_hold_in_its_own_folder(tmp_path):
    project = project_in(tmp_path)
    (tmp_path / "groups.csv").write_text("here,a\n", encoding="utf-8")
    for name in ("august", "reference"):  # a comma divides what is one text in scenes, nothing else
        (tmp_path / f"{name}.tif").rename(tmp_path / f"{name}, 2018.tif")
    scenes = {"april": "april.tif", "august": ["august, 2018.tif"]}
    area = project.settings.area[0].model_copy(update={"scenes": scenes, "reference": "reference, 2018.tif"})
    split = project.settings.split.model_copy(update={"groups": "groups.csv"})
    project = replace(project, settings=project.settings.model_copy(update={"area": [area], "split": split}))
    trial = Trial(
        "a", 1, {"train.learning-rate": 0.002}, [{"epoch": 1, "miou": 0.5, "elapsed": 1.0}], "bf16", None, False
    )
    folder = tmp_path / "runs" / "search"
    folder.mkdir(parents=True)
    (folder / "best.toml").write_text(best_toml(project, folder, trial), encoding="utf-8")
    found = load_project(folder / "best.toml")
    assert [scene.files for scene in found.areas[0].scenes.values()] == [
        (str(folder / "../../april.tif"),), (str(folder / "../../august, 2018.tif"),)
    ]  # fmt: skip
    assert Path(str(found.areas[0].reference)).resolve() == tmp_path / "reference, 2018.tif"
    assert (folder / found.settings.split.groups).resolve() == tmp_path / "groups.csv"
    train = found.settings.train
    assert (train.learning_rate, train.precision, train.threads, train.epochs) == (0.002, "bf16", 1, 8)
    assert found.settings.legend == "catalonia-12"
    assert "stopped after 1 of 8 epochs" in (folder / "best.toml").read_text(encoding="utf-8")


def scores(path):
    return [(record["loss"], record["miou"]) for record in read_history(path)]


def kill_a_node(cluster, search, killed):
    """Once a trial is at work on it and has trained some epochs."""
    from ray._private.state import available_resources_per_node

    def node_at_work():
        going = [
            path for path in search.glob("trials/*/metrics.jsonl") if 1 <= len(path.read_text().splitlines()) < 8
        ]
        busy = [
            node
            for node in cluster.worker_nodes
            if available_resources_per_node().get(node.node_id, {"CPU": 1.0}).get("CPU", 0.0) == 0.0
        ]
        return busy[0] if going and busy else None

    node = wait_until(node_at_work, 120, every=0.5)
    cluster.remove_node(node, allow_graceful=False)
    killed.append(node.node_id)


def at_rest():
    """Whether all processors become free, and nobody asks for a placement group."""
    import ray

    wait_until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"], 20, every=0.5)
    return not ray.util.placement_group_table()


@pytest.mark.slow  # minutes: Ray takes its time to notice that a node is gone
def test_a_search_that_is_interrupted_and_loses_a_node_finds_the_same(tmp_path, cluster):
    project, search = project_in(tmp_path), tmp_path / "search"

    def interrupt(what, text):
        if what == "trial":
            raise KeyboardInterrupt

    # an earlier one was interrupted in its first second
    (search / "ray" / "search").mkdir(parents=True)
    (search / "ray" / "search" / "tuner.pkl").write_bytes(b"")
    with pytest.raises(KeyboardInterrupt):
        tune(project, search, address=cluster.address, on_message=interrupt)
    assert not (search / "best.toml").exists()
    assert at_rest(), "no trial goes on when its search is interrupted"
    before = {path: path.read_bytes() for path in (search / "shared").rglob("*.tif")}

    killed, told = [], []
    killer = threading.Thread(target=kill_a_node, args=(cluster, search, killed))
    killer.start()
    found = tune(project, search, address=cluster.address, on_message=lambda what, text: told.append((what, text)))
    killer.join()
    cluster.pad()
    assert killed, "a node was to die while a trial was at work on it"
    assert before == {path: path.read_bytes() for path in (search / "shared").rglob("*.tif")}
    assert ("tune", "going on with an interrupted search") in told

    # every trial is there, failed ones say why, and the others are what one process makes of their values
    assert len(found.trials) == 4
    shared, files = open_run(search / "shared")
    for trial in found.trials:
        if trial.drawn["model.encoder"] == "resnet999":
            assert "resnet999" in trial.failed
            continue
        assert trial.failed is None
        out = tmp_path / f"again-{trial.number}"
        train_trial(shared, files, trial.drawn, out)
        made = scores(search / "trials" / f"{trial.number:03d}" / "metrics.jsonl")
        assert made == scores(out / "metrics.jsonl")[: len(made)]
    assert {trial.outcome for trial in found.trials} >= {"failed", "ended"}

    # the project of the best one trains to the same score
    again = Run(load_project(found.project), tmp_path / "again")
    for stage in ("labels", "tiles", "train"):
        again.run(only=stage)
    history = read_history(tmp_path / "again" / "metrics.jsonl")
    assert max(record["miou"] for record in history) == found.best.score

    # table and page are whole
    with (search / "trials.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train.learning-rate"]) for row in rows] == [
        t.drawn["train.learning-rate"] for t in found.trials
    ]
    assert [row["why"] != "" for row in rows] == [t.failed is not None for t in found.trials]
    page = found.page.read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page), "the page needs nothing from elsewhere"
    assert page.count("<polyline") == 2 * sum(t.failed is None for t in found.trials)

    # a second call has nothing to do, and other settings need another folder
    assert tune(project, search, address="nowhere:1").best == found.best
    other = replace(project, settings=with_values(project.settings, {"train.batch-size": 4}))
    with pytest.raises(SettingsError, match=r"other settings \(train.batch-size\).*--run NEW"):
        tune(other, search, address=cluster.address)


def test_a_search_for_what_no_node_has_says_so_before_it_waits(tmp_path, cluster, caplog):
    project = project_in(tmp_path)
    greedy = replace(project, settings=with_values(project.settings, {"tune.gpus": 1.0, "tune.cpus": 2.0}))
    with pytest.raises(KeyboardInterrupt), patch.object(tuning, "_scheduler", side_effect=KeyboardInterrupt):
        tune(greedy, tmp_path / "search", address=cluster.address)
    assert re.search("no node has 2 processors and 1 GPU .* Set fewer tune.cpus or tune.gpus", caplog.text)


@pytest.mark.slow
def test_a_search_of_which_no_trial_can_begin_says_why_and_begins_anew(tmp_path, cluster):
    def fails(config, search):
        raise InputFileError("no run there")

    project, search = project_in(tmp_path), tmp_path / "search"
    for _ in range(2):
        with (
            patch.object(tuning, "run_trial", fails),
            patch.object(tuning, "LOST_NODES", 0),
            pytest.raises(ClusterError, match=r"no trial could begin: .*InputFileError: no run there"),
        ):
            tune(project, search, address=cluster.address)


@pytest.mark.slow
def test_tpe_and_the_command_without_a_cluster(tmp_path):
    pytest.importorskip("optuna")
    pytest.importorskip("ray")
    import subprocess
    import sys

    project_in(tmp_path, "tpe")
    command = [sys.executable, "-m", "cobertes", "tune", "project.toml", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    answer = json.loads(done.stdout)
    assert answer["trials"] == 4
    best = tomllib.loads((tmp_path / answer["project"]).read_text(encoding="utf-8"))
    assert best["train"]["learning-rate"] == answer["best"]["train.learning-rate"]
    trials = read_trials(tmp_path / "runs" / "small-tune", load_project(tmp_path / "project.toml").settings)
    assert max(t.score for t in trials if t.failed is None) == answer["miou"]
