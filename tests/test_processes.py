"""Two processes that train together (gloo, on CPU) learn what one learns from the same batches."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from cobertes.learn.metrics_log import read_history
from cobertes.learn.model_file import load_model, read_header
from helpers.command_line import call
from helpers.projects import write_ground, write_project

TRAINING = """
import sys
from pathlib import Path
import torch

kept = torch.optim.Adam.step
out = Path(sys.argv.pop())

def step(optimizer, closure=None):
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not out.exists():
        torch.save(gradients, out)
    return kept(optimizer, closure)

torch.optim.Adam.step = step
# frozen batch norm: what the statistics of a batch are depends on how it is shared out
torch.nn.BatchNorm2d.forward = lambda self, x: torch.nn.functional.batch_norm(
    x, self.running_mean, self.running_var, self.weight, self.bias, False
)
from cobertes.cli.main import main
main()
"""


def train(project, script, run, processes, gradients, selected="--only"):
    """`cobertes run --only train` (or --from) by some processes; returns what it told."""
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    launch = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "--"]
        if processes > 1
        else []
    )
    command = [sys.executable, *launch, script, "run", project, "--run", run, selected, "train", gradients]
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    write_ground(folder)
    project = write_project(folder, train='class-weights = "ins"')
    text = project.read_text().replace("epochs = 8", "epochs = 2").replace("samples = 64", "samples = 22")
    project.write_text(text)
    (folder / "train.py").write_text(TRAINING)
    return folder


def test_two_processes_learn_what_one_learns(folder):
    project = folder / "project.toml"
    for number in (1, 2):
        for stage in ("labels", "tiles"):
            assert call("run", project, "--run", folder / str(number), "--only", stage).exit_code == 0
        told = train(project, folder / "train.py", folder / str(number), number, folder / f"{number}.pt")
        assert told.count("best of 2 epochs") == 1  # the second process is silent
    one, two = (torch.load(folder / f"{number}.pt") for number in (1, 2))
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    first, second = (read_history(folder / str(number) / "metrics.jsonl") for number in (1, 2))
    assert first[0]["loss"] == pytest.approx(second[0]["loss"], rel=1e-4)
    assert first[0]["validation_loss"] == pytest.approx(second[0]["validation_loss"], rel=1e-3)
    assert len(first) == len(second) == 2
    assert read_header(folder / "2").training["finished"]
    for value in load_model(folder / "2")[0].state_dict().values():
        assert np.isfinite(value.float().numpy()).all()


def test_two_processes_train_anew_and_the_first_goes_on_alone(folder, tmp_path):
    project = folder / "anew.toml"
    text = (folder / "project.toml").read_text().replace("epochs = 2", "epochs = 1")
    project.write_text(text.replace("size = 16\n", 'size = 16\nstore = "never"\n'))
    for stage in ("labels", "tiles", "train"):
        assert call("run", project, "--run", tmp_path, "--only", stage).exit_code == 0
    old = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"not to be gone on with")
    told = train(project, folder / "train.py", tmp_path, 2, tmp_path / "gradients.pt", "--from")
    assert "can't be read" not in told
    assert "going on" not in told
    (kept,) = tmp_path.glob("model.*.safetensors")
    assert kept.read_bytes() == old
    assert told.count(f"the old model is kept as {kept.name}") == 1
    assert read_header(tmp_path).training["finished"]
    assert len(read_history(tmp_path / "metrics.jsonl")) == 1
    for line in ("best of 1 epochs", "overall accuracy", "1 map of", "report.html"):
        assert told.count(line) >= 1
    assert [path.name for path in (tmp_path / "maps").glob("*.tif")] != []
    assert (tmp_path / "report.html").exists()
    done = call("run", project, "--run", tmp_path)
    assert done.exit_code == 0
    assert done.stderr.count("up to date") == 6


def test_a_new_training_of_two_processes_that_can_not_start_leaves_the_old_model(folder, tmp_path):
    project = folder / "project.toml"
    for stage in ("labels", "tiles", "train"):
        assert call("run", project, "--run", tmp_path, "--only", stage).exit_code == 0
    old = (tmp_path / "model.safetensors").read_bytes()
    broken = folder / "broken.toml"
    broken.write_text(project.read_text().replace('encoder = "scratch"', 'encoder = "resnt50"'))
    with pytest.raises(AssertionError, match="unknown encoder 'resnt50'"):
        train(broken, folder / "train.py", tmp_path, 2, tmp_path / "gradients.pt", "--from")
    assert (tmp_path / "model.safetensors").read_bytes() == old
    assert not list(tmp_path.glob("model.*.safetensors"))


def test_several_processes_do_no_stage_before(folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = call("run", folder / "project.toml", "--run", folder / "no")
    assert done.exit_code == 2
    assert "2 processes can train together, but not do the stages before" in done.stderr
    assert not (folder / "no").exists()
