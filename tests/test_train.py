"""The training loop: what is learnt, exact resuming, and what is said where it can't go on."""

import io
import json
import logging
import math
import re
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console as RichConsole
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from cobertes.cli.console import _Bars
from cobertes.errors import SettingsError, StorageError, TrainingError
from cobertes.learn import devices, training_state
from cobertes.learn import train as train_module
from cobertes.learn.checkpoints import save_checkpoint
from cobertes.learn.devices import choose_precision, make_fabric
from cobertes.learn.encoding import Inputs
from cobertes.learn.inference import evaluate_windows, plan_blocks
from cobertes.learn.loader import batches
from cobertes.learn.lr_schedule import rate_share
from cobertes.learn.metrics_log import best_epoch, next_is_last, read_history, should_stop_early, time_is_up
from cobertes.learn.model_file import load_model, read_header, save_model
from cobertes.learn.train import train
from cobertes.learn.unet import UNet, UNetSettings
from cobertes.settings import TrainSettings
from helpers.rasters import read_raster, write_raster
from helpers.samples import LEGEND, PLAIN
from helpers.training import StopError, landscape, plan_of, same_weights, stop_after

TIMES = {"seconds", "elapsed", "tiles_per_second", "waiting_share"}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return landscape(tmp_path_factory.mktemp("project"))


def without_times(history):
    return [{name: value for name, value in record.items() if name not in TIMES} for record in history]


def most_frequent(project):
    """Validation mIoU of a map that is one class throughout."""
    common = int(project.index.statistics.class_counts.argmax())

    def forward(x):
        return torch.nn.functional.one_hot(torch.full(x[:, 0].shape, common), len(LEGEND)).movedim(-1, 1).float()

    plan = plan_blocks(project.ground, "v", 16, 4)
    return evaluate_windows(forward, Inputs.of(project.index.statistics), project.ground, plan, 8)[0].miou


# --- learning ----------------------------------------------------------------------------------------------


def test_a_training_leaves_torch_as_it_was(project, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    fabric_level = logging.getLogger("lightning_fabric").level
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    during = []

    def look(record):
        during.append((torch.get_num_threads(), torch.backends.cudnn.allow_tf32))

    train(plan_of(project, epochs=1, threads=2), tmp_path / "whole", on_epoch=look)
    with pytest.raises(StopError):
        train(plan_of(project, epochs=2, threads=2), tmp_path / "stopped", on_epoch=stop_after(1))
    assert during == [(2, False)]
    assert torch.get_num_threads() == 1
    assert torch.backends.cudnn.allow_tf32
    assert torch.equal(torch.randn(3), expected)
    assert logging.getLogger("lightning_fabric").level == fabric_level


def test_a_small_project_is_learnt_in_seconds(project, tmp_path):
    records = []
    plan = plan_of(project, epochs=8, samples=48, learning_rate=0.01)
    header = train(plan, tmp_path, on_epoch=records.append)
    assert len(records) == 8
    assert records[-1]["loss"] < records[0]["loss"] / 2
    assert header.training["validation_miou"] > most_frequent(project) + 0.3
    assert header.training["validation_miou"] == max(record["miou"] for record in records)
    for record in records:
        assert record.keys() == {
            "epoch", "loss", "validation_loss", "miou", "mean_dice", "overall_accuracy", "learning_rate",
            "window", "seconds", "elapsed", "tiles_per_second", "waiting_share",
        }  # fmt: skip
        assert 0 <= record["waiting_share"] <= 1


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16"},
        {"precision": "auto"},
        {"class_weights": "ins", "optimizer": "adamw"},
        {"window": 21, "batch_size": 5},
        {"loss": {"cross-entropy": 1, "dice": 1}, "schedule": "one-cycle", "clip_norm": 5.0},
        {"loss": "focal", "schedule": "cosine", "label_smoothing": 0.05, "class_weights": "sqrt-ins"},
        {"sampling": "ins", "accumulate": 2, "batch_size": 3, "schedule": "constant"},
        {"class_weights": {"class-50": 3, "Class 40": 2}},
    ],
)
def test_other_settings_learn_too(project, tmp_path, options):
    plan = plan_of(project, epochs=4, samples=48, **{"learning_rate": 0.01} | options)
    header = train(plan, tmp_path)
    assert header.training["validation_miou"] > most_frequent(project) + 0.2
    assert header.window == options.get("window", 16)


def test_a_backbone_learns_from_any_number_of_bands(project, tmp_path):
    plan = plan_of(project, model={"encoder": "resnet18", "decoder": [8]}, epochs=1, samples=12)
    header = train(plan, tmp_path)
    model, _ = load_model(tmp_path)
    assert model.encoder.backbone.conv1.weight.shape[1] == 2
    assert header.network.encoder == "resnet18"


def test_the_model_file_holds_the_best_epoch(project, tmp_path):
    # a learning rate at which epochs get worse again
    plan = plan_of(project, epochs=8, learning_rate=0.3, seed=1)
    header = train(plan, tmp_path)
    history = read_history(tmp_path / "metrics.jsonl")
    best = max(history, key=lambda record: record["miou"])
    assert best["epoch"] < 8
    model, again = load_model(tmp_path)
    held_out = plan_blocks(project.ground, "v", 16, 0)
    with torch.inference_mode():
        matrix, loss = evaluate_windows(model, again.inputs, project.ground, held_out, 6)
    assert matrix.miou == pytest.approx(best["miou"], abs=1e-6)
    assert loss == pytest.approx(best["validation_loss"], rel=1e-4)
    assert header.to_json() == again.to_json()
    assert {k: again.training[k] for k in ("best_epoch", "epochs", "finished", "fingerprint", "precision")} == {
        "best_epoch": best["epoch"], "epochs": 8, "finished": True, "fingerprint": "same", "precision": "fp32",
    }  # fmt: skip
    assert (again.resolution, again.legend) == (10.0, LEGEND)


def test_metrics_go_to_a_file_and_to_tensorboard(project, tmp_path):
    records = []
    train(plan_of(project), tmp_path, on_epoch=records.append)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("loss", "validation_loss", "miou", "mean_dice", "learning_rate"):
        found = [(e.step, e.value) for e in events.Scalars(name)]
        assert found == [(r["epoch"], pytest.approx(r[name], rel=1e-6)) for r in records]


def test_the_learning_rate_halves_where_validation_does_not_improve(project, tmp_path):
    plan = plan_of(project, epochs=6, learning_rate=1.0, plateau_patience=1, seed=1)
    train(plan, tmp_path)
    history = read_history(tmp_path / "metrics.jsonl")
    bad, rate, best = 0, 1.0, math.inf
    for record in history:
        assert record["learning_rate"] == rate
        bad = 0 if record["validation_loss"] < best * (1 - 1e-4) else bad + 1
        best = min(best, record["validation_loss"])
        if bad > 1:
            bad, rate = 0, rate / 2
    assert rate < 1


def test_batch_norm_is_kept_where_large_windows_come_last(project, tmp_path, monkeypatch):
    seen = []

    def watched(sampler, inputs, epoch, *others, **options):
        for batch in batches(sampler, inputs, epoch, *others, **options):
            seen.append((epoch, batch.x.shape))
            yield batch

    monkeypatch.setattr(train_module, "batches", watched)
    gathered = {}

    def keep(record):
        state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=False)
        for name, kept in (
            (record["epoch"], state["model"]),
            (f"average {record['epoch']}", state["averaged"]["model"]),
        ):
            gathered[name] = {k: v for k, v in kept.items() if "running" in k}
        gathered[record["epoch"], "weights"] = state["model"]["head.weight"]

    plan = plan_of(project, epochs=8, window=[8, 16])
    train(plan, tmp_path / "run", on_epoch=keep)
    assert {(epoch > 6, shape[-1], len(shape)) for epoch, shape in seen} == {(False, 8, 4), (True, 16, 4)}
    assert {shape[0] * shape[-1] ** 2 for _, shape in seen} == {6 * 16**2}

    def same(a, b):
        return all(torch.equal(gathered[a][name], gathered[b][name]) for name in gathered[a])

    assert same("average 6", 7)
    assert same(7, 8)
    assert not same(5, 6)
    assert not torch.equal(gathered[7, "weights"], gathered[8, "weights"])
    assert [record["window"] for record in read_history(tmp_path / "run" / "metrics.jsonl")] == 6 * [8] + 2 * [16]


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
def test_the_learning_rate_follows_its_schedule_and_goes_on_with_it(project, tmp_path, schedule):
    plan = plan_of(project, epochs=6, schedule=schedule, warm_up=0.2, learning_rate=0.01)
    for name in ("whole", "stopped"):
        with suppress(StopError):
            train(plan, tmp_path / name, on_epoch=stop_after(2) if name == "stopped" else lambda record: None)
    train(plan, tmp_path / "stopped")
    rates = [
        [r["learning_rate"] for r in read_history(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "stopped")
    ]
    assert rates[0] == rates[1]
    # the last of an epoch's four steps begins when three quarters of it are over
    expected = [0.01 * rate_share(plan.settings, (epoch + 0.75) / 6) for epoch in range(6)]
    assert rates[0] == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
def test_schedules_rise_to_the_rate_asked_for_and_fall_to_nearly_nothing(schedule):
    settings = TrainSettings(schedule=schedule)
    shares = [rate_share(settings, over) for over in np.linspace(0, 1, 1001)]
    top = int(np.argmax(shares))
    assert shares[top] == pytest.approx(1, abs=1e-3)
    assert shares[0] == pytest.approx(1 / 25)
    assert shares[-1] <= 0.01
    assert (np.diff(shares[: top + 1]) >= 0).all()
    assert (np.diff(shares[top:]) <= 0).all()
    assert rate_share(settings, 1.3) == shares[-1]  # an epoch that ends after the minutes


def test_minutes_shorten_a_schedule(project, tmp_path, monkeypatch):
    ticks = count()  # a clock that goes on by a tenth of a second whenever somebody looks at it
    for module in (train_module, training_state):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 0.1 * next(ticks)))
    plan = plan_of(project, epochs=100_000, minutes=0.2, schedule="cosine", learning_rate=0.01)
    train(plan, tmp_path)
    rates = [r["learning_rate"] for r in read_history(tmp_path / "metrics.jsonl")]
    assert len(rates) > 4
    assert max(rates) > 0.009
    assert rates[-1] < 0.002


def test_training_stops_where_nothing_gets_better(project, tmp_path):
    plan = plan_of(project, epochs=50, learning_rate=1e-9, stop_after=2, averaging=0.0)
    header = train(plan, tmp_path)
    assert header.training["epochs"] < 10
    assert header.training["best_epoch"] == header.training["epochs"] - 2
    history = [{"epoch": n, "miou": score} for n, score in enumerate((0.1, math.nan, 0.3, math.nan, math.nan), 1)]
    assert not should_stop_early(history, TrainSettings(stop_after=2))
    assert not should_stop_early(history, TrainSettings(stop_after=3))
    assert not should_stop_early(history[:5], TrainSettings(stop_after=1))  # nothing was validated since
    later = [*history, {"epoch": 6, "miou": 0.2}]
    assert should_stop_early(later, TrainSettings(stop_after=3))
    assert not should_stop_early([{"epoch": 1, "miou": math.nan}] * 9, TrainSettings(stop_after=1))
    assert not should_stop_early(history, TrainSettings())


def test_validation_may_be_done_every_few_epochs_and_is_done_in_the_last(project, tmp_path):
    train(plan_of(project, epochs=5, validate_every=2), tmp_path / "some")
    train(plan_of(project, epochs=5), tmp_path / "all")
    some, every = (read_history(tmp_path / name / "metrics.jsonl") for name in ("some", "all"))
    for one, other in zip(some, every, strict=True):
        if one["epoch"] in (2, 4, 5):
            assert without_times([one]) == without_times([other])
        else:
            assert math.isnan(one["miou"])
            assert math.isnan(one["validation_loss"])
            assert one["loss"] == other["loss"]


def test_a_training_that_minutes_end_is_validated_at_its_end(project, tmp_path, monkeypatch):
    ticks = count()
    for module in (train_module, training_state):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 0.1 * next(ticks)))
    header = train(plan_of(project, epochs=1000, validate_every=1000, minutes=0.2), tmp_path)
    history = read_history(tmp_path / "metrics.jsonl")
    assert [math.isnan(record["miou"]) for record in history] == [True] * (len(history) - 1) + [False]
    assert header.training["validation_miou"] == history[-1]["miou"]


def test_a_checkpoint_that_torch_can_not_write_is_a_storage_error(tmp_path, monkeypatch):
    def fails(*arguments, **options):
        raise RuntimeError("[enforce fail at inline_container.cc] . unexpected pos 640 vs 534")

    (tmp_path / "last.ckpt").write_bytes(b"old")
    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(StorageError, match=r"can't write .*last\.ckpt"):
        save_checkpoint(tmp_path, {"history": []})
    assert (tmp_path / "last.ckpt").read_bytes() == b"old"


def test_accumulated_batches_give_the_gradient_of_one_large_batch(project, tmp_path, monkeypatch):
    found = {}
    kept = torch.optim.Adam.step

    def watch(optimizer, closure=None):
        grads = [p.grad.clone() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        found.setdefault(name, grads)
        return kept(optimizer, closure)

    monkeypatch.setattr(torch.optim.Adam, "step", watch)
    monkeypatch.setattr(torch.nn.BatchNorm2d, "forward", lambda self, x: x * self.weight[:, None, None])
    for name, options in (("one", {"batch_size": 6}), ("three", {"batch_size": 2, "accumulate": 3})):
        train(plan_of(project, epochs=1, samples=6, class_weights="ins", **options), tmp_path / name)
    for one, other in zip(found["one"], found["three"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_gradients_are_clipped_to_their_norm(project, tmp_path, monkeypatch):
    norms = []
    kept = torch.optim.Adam.step

    def watch(optimizer, closure=None):
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(float(torch.nn.utils.get_total_norm(grads)))
        return kept(optimizer, closure)

    monkeypatch.setattr(torch.optim.Adam, "step", watch)
    train(plan_of(project, epochs=1), tmp_path / "free")
    free = max(norms)
    norms.clear()
    train(plan_of(project, epochs=1, clip_norm=free / 10), tmp_path / "clipped")
    assert max(norms) == pytest.approx(free / 10, rel=1e-3)


def test_a_frozen_backbone_stays_as_it_is_until_its_epoch(project, tmp_path):
    model = {"encoder": "resnet18", "decoder": [8]}
    states = {}

    def frozen_for(first, **options):  # random weights are refused in a project, but tell as much
        return plan_of(project, model=model, samples=12, averaging=0.0, freeze_encoder=first, **options)

    for frozen in (0, 1):
        plan = frozen_for(frozen, epochs=1)
        train(plan, tmp_path / str(frozen))
        states[frozen] = load_model(tmp_path / str(frozen))[0].state_dict()
    torch.manual_seed(0)
    first = UNet(plan.network).state_dict()
    for name, value in first.items():
        part = "encoder.backbone" in name
        assert torch.equal(states[1][name], value) is part, name
        assert part is False or not torch.equal(states[0][name], value) or "num_batches" in name or value.ndim == 0
    train(frozen_for(1, epochs=2), tmp_path / "then")
    after = load_model(tmp_path / "then")[0].state_dict()
    assert not torch.equal(after["encoder.backbone.conv1.weight"], first["encoder.backbone.conv1.weight"])


@pytest.mark.parametrize("options", [{"targets": "fractions"}, {"purity_weight": True},
                                     {"targets": "fractions", "purity_weight": True, "loss": "dice"}])  # fmt: skip
def test_shares_of_classes_can_be_learnt_from(project, tmp_path, options):
    ground = project.ground
    with pytest.raises(SettingsError, match="need files of shares"):
        plan_of(project, **options)
    index = LEGEND.index_table()[read_raster(ground.labels["here"])]
    if options.get("targets") == "fractions":
        shares = np.where(index == np.arange(len(LEGEND))[:, None, None], 80, 5)
    else:
        shares = np.full((1, *index.shape), 80)
    shares = np.where(index == 255, 255, shares).astype(np.uint8)
    path = write_raster(tmp_path / "shares.tif", shares, ground.areas["here"].grid, nodata=255)
    other = replace(project, ground=replace(ground, shares={"here": path}))
    header = train(plan_of(other, epochs=4, samples=48, learning_rate=0.01, **options), tmp_path)
    assert header.training["validation_miou"] > most_frequent(project) + 0.2
    record = read_history(tmp_path / "metrics.jsonl")[-1]
    if options == {"targets": "fractions"}:  # a certain map would be 80 % right: this much can't be explained
        least = -(0.8 * np.log(0.8) + 4 * 0.05 * np.log(0.05))
        assert least < record["loss"] < least + 0.5


def test_progress_shows_each_epoch_and_its_validation(project, tmp_path):
    bars, moved, notes = [], {}, {}

    class Bars:
        @contextmanager
        def bar(self, name, total, unit):
            bars.append((name, total, unit))
            key = len(bars)

            def advance(amount, note=""):
                moved[key] = moved.get(key, 0) + amount
                notes.setdefault(key, []).extend([note] if note else [])

            yield advance

    train(plan_of(project, epochs=2), tmp_path, progress=Bars())
    assert [name for name, _, _ in bars] == ["epoch 1", "validation", "epoch 2", "validation"]
    assert [moved[i + 1] for i in range(4)] == [total for _, total, _ in bars]
    first, second = read_history(tmp_path / "metrics.jsonl")
    assert [len(notes[key]) for key in (1, 2, 3, 4)] == [4, 0, 4, 0]  # one for each step
    assert re.fullmatch(rf"loss {first['loss']:.3f}, \d+% of the time waiting for data", notes[1][-1])
    assert notes[3][-1].startswith(f"loss {second['loss']:.3f}, last mIoU {first['miou']:.3f}, ")
    assert len({note.split(",")[0] for note in notes[1]}) > 1  # the loss so far


def test_a_training_is_watched_on_a_terminal_of_80_columns(project, tmp_path):
    stream = io.StringIO()
    console = RichConsole(file=stream, width=80, force_terminal=True, color_system=None, legacy_windows=False)
    train(plan_of(project, epochs=2, samples=48), tmp_path, progress=_Bars(console))
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", stream.getvalue()).splitlines()
    assert all(len(line.rstrip()) <= 80 for line in shown)
    assert any(re.match(r"epoch 2 .* 48/48 tiles  [\d.]+/s", line) for line in shown)
    miou = read_history(tmp_path / "metrics.jsonl")[0]["miou"]
    notes = [line for line in shown if "loss" in line]
    assert any(re.match(r"  loss \d\.\d{3}, \d+% of the time waiting for data\s*$", line) for line in notes)
    assert any(f"last mIoU {miou:.3f}, " in line for line in notes)


# --- resuming ----------------------------------------------------------------------------------------------


def test_a_training_that_was_stopped_goes_on_exactly(project, tmp_path):
    plan = plan_of(project, epochs=5, learning_rate=0.01, plateau_patience=0)
    train(plan, tmp_path / "whole")
    for epoch in (1, 3):
        with pytest.raises(StopError):
            train(plan, tmp_path / "parts", on_epoch=stop_after(epoch))
        assert not (tmp_path / "parts" / "model.safetensors").exists()
        torch.randn(7)  # whatever else draws random numbers in between
    train(plan, tmp_path / "parts")
    whole, parts = (read_history(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts"))
    assert without_times(parts) == without_times(whole)
    assert [r["elapsed"] for r in parts] == sorted(r["elapsed"] for r in parts)
    assert same_weights(tmp_path / "whole", tmp_path / "parts")


def test_two_trainings_with_one_seed_are_the_same_and_with_another_are_not(project, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(plan_of(project, seed=seed, epochs=2), tmp_path / name)
        torch.randn(3)
    a, b, c = (without_times(read_history(tmp_path / name / "metrics.jsonl")) for name in "abc")
    assert a == b
    assert a != c


def test_dropout_in_an_encoder_does_not_break_exact_resuming(project, tmp_path, monkeypatch):
    class Dropping(UNet):
        def forward(self, x):
            return super().forward(torch.nn.functional.dropout(x, 0.2, self.training))

    monkeypatch.setattr(training_state, "build_network", Dropping)
    plan = plan_of(project, epochs=2)
    train(plan, tmp_path / "whole")
    with pytest.raises(StopError):
        train(plan, tmp_path / "parts", on_epoch=stop_after(1))
    train(plan, tmp_path / "parts")
    whole, parts = (read_history(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts"))
    assert without_times(parts) == without_times(whole)


def test_a_resumed_training_needs_no_hub(project, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        training_state, "load_pretrained", lambda network, weights, bands: asked.append((weights, bands))
    )
    plan = plan_of(
        project, model={"encoder": "resnet18", "decoder": [8], "weights": "imagenet"}, epochs=2, samples=12
    )
    with pytest.raises(StopError):
        train(plan, tmp_path, on_epoch=stop_after(1))
    train(plan, tmp_path)
    assert asked == [("imagenet", ("band1", "band2"))]


class _Interrupted:
    """A progress bar at which somebody presses Ctrl-C, in the middle of an epoch."""

    @contextmanager
    def bar(self, name, total, unit):
        def advance(amount, note=""):
            if name == "epoch 2":
                raise KeyboardInterrupt

        yield advance


def test_an_interrupt_in_an_epoch_leaves_the_last_whole_one(project, tmp_path, monkeypatch):
    plan = plan_of(project)
    with pytest.raises(KeyboardInterrupt):
        train(plan, tmp_path, progress=_Interrupted())
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    events = {name for name in found if name.startswith("tensorboard")}
    assert found - events == {"metrics.jsonl", "checkpoints/last.ckpt", "checkpoints/best.safetensors"}
    assert [r["epoch"] for r in read_history(tmp_path / "metrics.jsonl")] == [1]
    assert not read_header(tmp_path / "checkpoints" / "best.safetensors").training["finished"]
    # TensorBoard names its files by the second and reads them in the order of their names
    monkeypatch.setattr(event_file_writer, "time", SimpleNamespace(time=lambda: time.time() + 1))
    train(plan, tmp_path)
    assert [r["epoch"] for r in read_history(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3]


def test_a_finished_training_is_not_trained_again(project, tmp_path):
    plan = plan_of(project, epochs=2)
    train(plan, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").unlink()
    train(plan, tmp_path, on_epoch=lambda record: pytest.fail("an epoch was trained"))
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_checkpoint_of_other_settings_is_not_gone_on_with(project, tmp_path, caplog):
    train(plan_of(project, epochs=2), tmp_path)
    records = []
    with caplog.at_level(logging.INFO):
        train(plan_of(project, epochs=1, fingerprint="other"), tmp_path, on_epoch=records.append)
    assert "of other settings or data: training from the start" in caplog.text
    assert [r["epoch"] for r in records] == [1]
    assert len(read_history(tmp_path / "metrics.jsonl")) == 1
    assert read_header(tmp_path / "model.safetensors").training["fingerprint"] == "other"


def _save_other(path):
    torch.save({"weights": torch.zeros(2)}, path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not a checkpoint"),
        lambda path: torch.save([1, 2], path),
        _save_other,
    ],
)
def test_a_damaged_checkpoint_is_told_with_the_way_out(project, tmp_path, damage):
    plan = plan_of(project, epochs=1)
    train(plan, tmp_path)
    damage(tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(
        TrainingError, match=r"last\.ckpt can't be read\. Delete the folder to train from the start"
    ):
        train(plan, tmp_path)


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None])
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(project, tmp_path, caplog, damage):
    plan = plan_of(project, epochs=4)
    train(plan, tmp_path / "whole")
    with pytest.raises(StopError):
        train(plan, tmp_path / "damaged", on_epoch=stop_after(3))
    last = tmp_path / "damaged" / "checkpoints" / "last.ckpt"
    if damage is None:  # killed between the two renames
        last.unlink()
    else:
        last.write_bytes(damage)
    with caplog.at_level(logging.INFO):
        train(plan, tmp_path / "damaged")
    assert "going on after epoch 2" in caplog.text
    one, other = (read_history(tmp_path / name / "metrics.jsonl") for name in ("whole", "damaged"))
    assert without_times(one) == without_times(other)
    assert same_weights(tmp_path / "whole" / "model.safetensors", tmp_path / "damaged" / "model.safetensors")


def test_lost_weights_of_the_best_epoch_are_told_with_the_way_out(project, tmp_path):
    plan = plan_of(project, epochs=1)
    train(plan, tmp_path)
    for damage in (lambda path: path.write_bytes(b"x" * 20), lambda path: path.unlink()):
        damage(tmp_path / "checkpoints" / "best.safetensors")
        with pytest.raises(TrainingError, match=r"best\.safetensors: .*Delete .*checkpoints to start anew"):
            train(plan, tmp_path)


# --- where it ends -----------------------------------------------------------------------------------------


def test_minutes_end_a_training_after_whole_epochs(project, tmp_path):
    records = []
    plan = plan_of(project, epochs=1000, minutes=0.01)
    header = train(plan, tmp_path, on_epoch=records.append)
    assert 1 <= len(records) < 1000
    assert header.training["epochs"] == len(records)
    assert header.training["finished"]


@pytest.mark.parametrize(
    ("ends", "now", "up"),
    [([], 500, False), ([50], 50, True), ([40], 60, False), ([40, 60], 95, False), ([40, 60], 105, True)],
)
def test_an_epoch_is_not_begun_that_would_end_after_the_minutes(ends, now, up):
    settings = TrainSettings(minutes=2 if ends != [50] else 1.5)
    assert time_is_up([{"elapsed": end} for end in ends], settings, now) is up
    assert time_is_up([{"elapsed": 1e9}], TrainSettings(), 1e9) is False


@pytest.mark.parametrize(("epochs", "windows"), [(1, [8]), (2, [8, 16]), (3, [8, 8, 16]), (5, [8, 8, 8, 8, 16])])
def test_the_largest_windows_come_in_the_shortest_training_too(project, tmp_path, epochs, windows):
    train(plan_of(project, window=[8, 16], epochs=epochs), tmp_path)
    assert [record["window"] for record in read_history(tmp_path / "metrics.jsonl")] == windows


@pytest.mark.parametrize(
    ("ends", "now", "last"),
    [([], 0, False), ([30], 30, False), ([30], 61, True), ([30, 50], 80, False), ([30, 60], 65, True)],
)
def test_the_last_epoch_that_minutes_leave_is_known_before(ends, now, last):
    settings = TrainSettings(minutes=2)
    assert next_is_last([{"elapsed": end} for end in ends], settings, now) is last
    assert next_is_last([{"elapsed": 1.0}] * 2, TrainSettings(epochs=3), 0) is True


def _with_loss(plan, change):
    """The same plan, its loss changed: ``change`` gets logits and loss."""

    def loss(logits, *targets):
        value, weight = plan.loss(logits, *targets)
        return change(logits, value), weight

    return replace(plan, loss=loss)


def test_a_gradient_that_is_not_finite_stops_before_it_spoils_the_weights(project, tmp_path):
    # the root of zero is zero, its slope is not finite
    plan = _with_loss(plan_of(project, clip_norm=1.0), lambda logits, value: value + (0 * logits).sum().sqrt())
    with pytest.raises(TrainingError, match=r"the gradient is not finite in epoch 1: .*The batch is kept in "):
        train(plan, tmp_path)
    assert load_file(tmp_path / "checkpoints" / "not-finite.safetensors")["x"].shape == (6, 2, 16, 16)


def test_too_little_memory_of_a_device_is_told_with_the_way_out(project, tmp_path):
    def full(logits, value):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(TrainingError, match=r"not hold a step of 6 windows of 16 px: lower train\.batch-size"):
        train(_with_loss(plan_of(project), full), tmp_path)


def test_the_model_says_of_which_epoch_its_weights_are(project, tmp_path):
    """A training that was killed between its best weights and the checkpoint repeats the epoch."""
    plan = plan_of(project, epochs=2)
    train(plan, tmp_path)
    best = tmp_path / "checkpoints" / "best.safetensors"
    header = read_header(best)
    ahead = replace(header, training={**header.training, "best_epoch": 7, "validation_miou": 0.99})
    save_model(best, load_file(best), ahead)
    found = train(plan, tmp_path)
    assert (found.training["best_epoch"], found.training["validation_miou"]) == (7, 0.99)
    assert read_header(tmp_path / "model.safetensors").training == found.training


def test_a_loss_that_is_not_finite_stops_with_the_way_out(project, tmp_path):
    plan = plan_of(project, learning_rate=1e30)
    with pytest.raises(TrainingError, match=r"not finite in epoch \d.*lower train.learning-rate \(now 1e\+30\)"):
        train(plan, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    kept = load_file(tmp_path / "checkpoints" / "not-finite.safetensors")
    assert (kept["x"].shape, kept["y"].shape) == ((6, 2, 16, 16), (6, 16, 16))
    assert kept["x"].isfinite().all()  # so it was not the data


def _without_held_out_labels(project, folder):
    """The same project, but nothing in its validation blocks is labelled."""
    labels = np.zeros((128, 128), np.uint8)
    ground = project.ground
    for block in ground.split.areas["here"].windows("t"):
        labels[block.slices] = 10
        labels[block.row : block.row + 10, block.col : block.col_stop] = 20
    path = write_raster(folder / "labels.tif", labels, ground.areas["here"].grid, nodata=0)
    return replace(project, ground=replace(ground, labels={"here": path}))


def test_training_goes_on_where_nothing_held_out_is_labelled(project, tmp_path):
    plan = plan_of(_without_held_out_labels(project, tmp_path), epochs=3, plateau_patience=0)
    header = train(plan, tmp_path)
    history = read_history(tmp_path / "metrics.jsonl")
    assert all(math.isnan(r["miou"]) and math.isnan(r["validation_loss"]) for r in history)
    assert {r["learning_rate"] for r in history} == {0.001}  # nothing says that it should fall
    assert header.training["best_epoch"] == 3  # without a score the last epoch is taken
    json.loads(header.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_the_best_epoch_is_the_first_of_the_highest_score():
    def best(*scores):
        return best_epoch([{"epoch": i, "miou": score} for i, score in enumerate(scores, 1)])["epoch"]

    nan = math.nan
    assert best(0.1, 0.3, 0.3, 0.2) == 2
    assert best(nan, 0.1, nan, 0.2, 0.1) == 4
    assert best(nan, 0.0) == 2
    assert best(nan, nan) == 2


def test_batches_without_labels_teach_nothing(project, tmp_path):
    other = _without_held_out_labels(project, tmp_path)
    empty = write_raster(tmp_path / "no.tif", np.zeros((128, 128), np.uint8), other.ground.areas["here"].grid)
    other = replace(other, ground=replace(other.ground, labels={"here": empty}))
    train(plan_of(other, epochs=1), tmp_path / "run")
    torch.manual_seed(0)
    start_weights = dict(UNet(UNetSettings(2, 5, "scratch", 4, 2)).named_parameters())
    model, _ = load_model(tmp_path / "run")
    assert all(torch.equal(p, start_weights[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(("samples", "batch_size"), [(1, 4), (5, 1), (3, 2)])
def test_a_batch_with_one_value_per_channel_is_refused_before_training(project, tmp_path, samples, batch_size):
    plan = plan_of(project, model={"encoder": "resnet18"}, samples=samples, batch_size=batch_size)
    with pytest.raises(SettingsError, match=r"window of 16 px is one pixel .*1/32.*train.window over 32 px"):
        train(plan, tmp_path)


def test_a_batch_of_one_is_enough_where_the_window_is_larger_than_the_stride(project, tmp_path):
    plan = plan_of(project, samples=1, batch_size=1, epochs=1, **PLAIN | {"sampling": "balanced"})
    assert train(plan, tmp_path).training["epochs"] == 1


def test_a_full_disk_is_a_storage_error_and_keeps_the_last_checkpoint(project, tmp_path, monkeypatch):
    plan = plan_of(project)
    with pytest.raises(StopError):
        train(plan, tmp_path, on_epoch=stop_after(1))
    before = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()

    def full(state, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StorageError, match=r"can't write .*last\.ckpt: No space left on device"):
        train(plan, tmp_path)
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == before
    assert not list((tmp_path / "checkpoints").glob(".*"))


# --- devices and precision ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("faster", "expected"), [("bf16", "bf16"), ("fp32", "fp32")])
def test_the_trial_takes_the_faster_precision(monkeypatch, faster, expected):
    seconds = {"fp32": 1.0, "bf16": 0.5 if faster == "bf16" else 0.95}
    monkeypatch.setattr(devices, "_time_steps", lambda model, where, precision, *rest: seconds[precision])
    model = torch.nn.Conv2d(1, 1, 1)
    precision, reason = choose_precision("auto", "cpu", model, (1, 1, 8, 8))
    assert precision == expected
    assert f"bf16 runs at {1 / seconds['bf16']:.2f} x fp32" in reason


def test_a_trial_is_not_made_where_the_precision_is_set():
    assert choose_precision("bf16", "cpu", None, (1, 1, 8, 8)) == ("bf16", "as set")


def test_a_layer_without_bf16_means_fp32(monkeypatch):
    def steps(model, where, precision, *rest):
        if precision == "bf16":
            raise RuntimeError('"conv" not implemented for BFloat16')
        return 1.0

    monkeypatch.setattr(devices, "_time_steps", steps)
    found = choose_precision("auto", "cpu", torch.nn.Conv2d(1, 1, 1), (1, 1, 8, 8))
    assert found == ("fp32", 'bf16 does not run here: "conv" not implemented for BFloat16')


@pytest.mark.parametrize(
    ("failing", "error", "expected"),
    [
        ("fp32", torch.cuda.OutOfMemoryError("CUDA out of memory"), ("bf16", "fp32 does not fit in the memory")),
        ("fp32", RuntimeError("MPS backend out of memory"), ("bf16", "fp32 does not fit in the memory")),
        ("bf16", TypeError("MPS has no BFloat16"), ("fp32", "bf16 does not run here: MPS has no BFloat16")),
    ],
)
def test_a_trial_that_one_precision_does_not_survive_means_the_other(monkeypatch, failing, error, expected):
    def steps(model, where, precision, *rest):
        if precision == failing:
            raise error
        return 1.0

    monkeypatch.setattr(devices, "_time_steps", steps)
    assert choose_precision("auto", "cpu", torch.nn.Conv2d(1, 1, 1), (1, 1, 8, 8)) == expected


def test_a_trial_in_fp32_that_fails_otherwise_is_no_answer(monkeypatch):
    def steps(*rest):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(devices, "_time_steps", steps)
    with pytest.raises(RuntimeError, match="no kernel image"):
        choose_precision("auto", "cpu", torch.nn.Conv2d(1, 1, 1), (1, 1, 8, 8))


def test_channels_come_last_but_on_mps():
    assert (
        devices.memory_format(torch.device("cuda"))
        is devices.memory_format(torch.device("cpu"))
        is torch.channels_last
    )
    assert devices.memory_format(torch.device("mps")) is torch.contiguous_format


def test_the_trial_leaves_model_and_random_numbers_as_they_were():
    torch.manual_seed(5)
    model = UNet(UNetSettings(2, 3, "scratch", 4, 2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    precision, _ = choose_precision("auto", "cpu", model, (4, 2, 16, 16))
    assert precision in ("fp32", "bf16")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert model.training


def test_a_trial_chooses_nothing_but_the_precision(project, tmp_path, monkeypatch):
    train(plan_of(project, epochs=2), tmp_path / "set")
    monkeypatch.setattr(devices, "MIN_SPEEDUP", math.inf)  # so fp32 comes out
    train(plan_of(project, epochs=2, precision="auto"), tmp_path / "tried")
    assert same_weights(tmp_path / "set", tmp_path / "tried")


def test_a_resumed_training_keeps_its_precision(project, tmp_path, monkeypatch):
    plan = plan_of(project, epochs=2, precision="auto")
    monkeypatch.setattr(devices, "MIN_SPEEDUP", math.inf)
    with pytest.raises(StopError):
        train(plan, tmp_path, on_epoch=stop_after(1))
    monkeypatch.setattr(devices, "MIN_SPEEDUP", 0.0)  # now a trial would say bf16
    assert train(plan, tmp_path).training["precision"] == "fp32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_a_settings_error(project, tmp_path):
    for name in ("cuda", "mps"):
        if name == "mps" and torch.backends.mps.is_available():
            continue
        with pytest.raises(SettingsError, match=rf"can't use device '{name}': .*Use device \"auto\" or \"cpu\""):
            make_fabric(name, "fp32")
