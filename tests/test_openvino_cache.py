"""Converted networks are kept, and no map depends on it."""

import os
import shutil

import numpy as np
import pytest
import torch

from cobertes.engines import openvino_cache, runtimes
from cobertes.engines.engine import open_engine
from cobertes.learn.model_file import save_model
from cobertes.learn.unet import UNet
from helpers.engines import header_of

pytest.importorskip("openvino")

X = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 2, 32, 32)).astype(np.float32))


def model_in(folder, seed=0):
    torch.manual_seed(seed)
    header = header_of()
    save_model(folder / "m.safetensors", UNet(header.network).state_dict(), header)
    return folder / "m.safetensors"


@pytest.fixture
def conversions(monkeypatch, tmp_path):
    """Shapes that were converted, with a cache of the test's own."""
    made, convert = [], runtimes.to_openvino
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(runtimes, "to_openvino", lambda model, shape: made.append(shape) or convert(model, shape))
    return made


def answer(path, x=X, precision="fp32"):
    return open_engine(path, device="cpu", engine="openvino", precision=precision).logits(x)


def places():
    return sorted(openvino_cache.cache_folder().iterdir())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_kept_network_gives_the_same_bits(tmp_path, conversions, precision):
    path = model_in(tmp_path)
    first = answer(path, precision=precision)
    assert torch.equal(answer(path, precision=precision), first)
    assert len(conversions) == 1
    assert len(places()) == 1


def test_a_kept_network_needs_no_model_in_memory(tmp_path, conversions, monkeypatch):
    path = model_in(tmp_path)
    first = answer(path)
    monkeypatch.setattr(runtimes, "load_model", lambda path: pytest.fail("the model was loaded"))
    assert torch.equal(answer(path), first)


def test_other_weights_windows_and_versions_are_converted_anew(tmp_path, conversions, monkeypatch):
    path = model_in(tmp_path)
    facts, first = path.stat(), answer(path)
    model_in(tmp_path, seed=1)  # the same name and size, and the same time
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert path.stat().st_size == facts.st_size
    openvino_cache._content_hash.cache_clear()  # as in another process
    assert not torch.equal(answer(path), first)
    assert len(conversions) == 2
    answer(path, torch.zeros(1, 2, 64, 64))
    assert conversions[2:] == [(2, 64, 64)]
    monkeypatch.setattr(openvino_cache, "version", lambda package: "99")
    answer(path)
    assert len(conversions) == 4


@pytest.mark.parametrize("file", [openvino_cache.XML, openvino_cache.BIN, openvino_cache.SUMS])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_network_is_made_again(tmp_path, conversions, file, damage):
    path = model_in(tmp_path)
    first = answer(path)
    damaged = places()[0] / file
    content = bytearray(damaged.read_bytes())
    if damage == "gone":
        damaged.unlink()
    else:
        content[len(content) // 2] ^= 1
        damaged.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    assert torch.equal(answer(path), first)
    assert len(conversions) == 2
    assert torch.equal(answer(path), first)
    assert len(conversions) == 2
    assert len(places()) == 1


@pytest.mark.parametrize("obstacle", ["a file", "no home"])
def test_without_a_place_to_keep_it_nothing_changes(tmp_path, conversions, monkeypatch, obstacle):
    path = model_in(tmp_path)
    if obstacle == "a file":
        (tmp_path / "cache").write_text("in the way")
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(openvino_cache.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    first = answer(path)
    assert torch.equal(answer(path), first)
    assert len(conversions) == 2


def test_a_full_disk_leaves_nothing_half_kept(tmp_path, conversions, monkeypatch):
    path = model_in(tmp_path)

    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(openvino_cache.os, "rename", full)
    answer(path)
    assert places() == []


def test_those_used_longest_ago_go_first(tmp_path, conversions, monkeypatch):
    monkeypatch.setattr(openvino_cache, "MAX_ENTRIES", 2)
    path = model_in(tmp_path)
    names = []
    for size in (32, 48):
        answer(path, torch.zeros(1, 2, size, size))
        names += [set(places()) - set().union(*names)]
        shutil.os.utime(next(iter(names[-1])), (size, size))  # long ago, one after the other
    answer(path)  # 32 is used again
    answer(path, torch.zeros(1, 2, 64, 64))
    assert names[0] <= set(places())
    assert not names[1] <= set(places())
    assert len(places()) == 2
