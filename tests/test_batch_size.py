"""How a training steps where the settings leave it open: the largest batch that fits, and what is said of it."""

import logging
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cobertes.errors import SettingsError
from cobertes.learn import batch_size, devices
from cobertes.learn.architectures import build_network
from cobertes.learn.batch_size import choose_step, largest_batch, max_windows, training_step
from cobertes.learn.devices import fits_in_memory, make_fabric
from cobertes.learn.losses import CROSS_ENTROPY
from cobertes.learn.train import train
from cobertes.learn.training_cost import estimate_training
from cobertes.learn.unet import UNetSettings
from cobertes.settings import TrainSettings
from helpers.training import StopError, landscape, plan_of, same_weights, stop_after

NETWORK = UNetSettings(4, 3, "scratch", 4, 2)
AUTO = TrainSettings(batch_size="auto", precision="fp32", device="cpu")


# --- the search --------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(0, 400))
def test_the_largest_batch_that_fits_is_found_in_few_tries(most, limit):
    tried = []

    def try_step(batch):
        tried.append(batch)
        return batch <= limit

    found = largest_batch(try_step, most)
    powers, multiples = {2**n for n in range(9)}, set(range(4, 301, 4))
    assert found == max((b for b in powers | multiples | {most} if b <= min(limit, most)), default=0)
    assert found == 0 or found in tried
    assert len(tried) == len(set(tried)) <= 17
    for number, batch in enumerate(tried):
        assert batch <= most
        assert batch <= 2 * max([b for b in tried[:number] if b <= limit], default=0.5)


@given(st.integers(1, 10_000), st.integers(1, 64))
def test_no_batch_is_larger_than_an_eighth_of_the_epoch_or_the_default(samples, processes):
    most = max_windows(samples, processes)
    assert 1 <= most <= 256
    if most > 1:
        assert most * processes <= max(samples / 8, 12)
        assert most * processes <= samples


# --- what is chosen ----------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch):
    """A CUDA device of so many windows per step in fp32 (twice as many in bf16), as far as trials can tell."""
    memory = SimpleNamespace(fp32=20, tried=[])

    def trial(fabric, network, train, loss, batch, side):
        bf16 = fabric._precision.precision != "32-true"
        memory.tried.append(("bf16" if bf16 else "fp32", batch))
        made = training_step(fabric, network, train, loss, 2, side)  # a real one, but small

        def steps():
            made()
            if batch > memory.fp32 * (2 if bf16 else 1):
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")

        return steps

    def fits(work):
        try:
            work()
        except torch.cuda.OutOfMemoryError:
            return False
        return True

    monkeypatch.setattr(batch_size, "is_cuda", lambda device: True)
    monkeypatch.setattr(batch_size, "training_step", trial)
    monkeypatch.setattr(batch_size, "fits_in_memory", fits)
    return memory


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return landscape(tmp_path_factory.mktemp("project"))


def choose(train=AUTO, **options):
    torch.manual_seed(0)
    options = {"sides": [16], "samples": 1000} | options
    return choose_step(train, build_network(NETWORK), CROSS_ENTROPY, **options)


def test_without_cuda_auto_is_the_default_and_says_so():
    found = choose()
    assert found.batch == 128  # 32,768 pixels
    assert choose(sides=[300]).batch == 12
    assert choose(TrainSettings(precision="fp32", device="cpu"), sides=[16, 64]).batch == 8
    assert found.why_batch == "auto: the default, as there is no CUDA device"
    assert choose(samples=5).batch == 5
    assert choose(TrainSettings(batch_size=7, precision="fp32", device="cpu")).why_batch == "as set"


def test_on_a_gpu_the_largest_batch_that_fits_is_taken(gpu):
    found = choose()
    assert found.batch == 20
    assert found.why_batch == "auto: 20 windows fit in the memory, more do not"
    assert [batch for _, batch in gpu.tried] == [1, 2, 4, 8, 16, 32, 24, 20]
    gpu.fp32 = 10_000
    assert choose().batch == 125
    assert choose().why_batch == "auto: 125 windows fit in the memory, the most for 1000 windows per epoch"


def test_processes_share_a_batch_that_each_of_their_gpus_has_room_for(gpu):
    found = choose(processes=3)
    assert found.batch == 60
    assert found.why_batch == "auto: 20 windows fit in the memory of each of 3 GPUs, more do not"


def test_bf16_is_tried_again_where_it_is_taken(gpu, monkeypatch):
    monkeypatch.setattr(devices, "MIN_SPEEDUP", 0.0)
    found = choose(AUTO.model_copy(update={"precision": "auto"}))
    assert (found.batch, found.precision) == (40, "bf16")
    assert {precision for precision, _ in gpu.tried} == {"fp32", "bf16"}


def test_a_gpu_that_holds_a_window_in_bf16_alone_learns_in_bf16(gpu):
    gpu.fp32 = 0.5
    found = choose(AUTO.model_copy(update={"precision": "auto"}), sides=[16])
    assert (found.batch, found.precision, found.why_precision) == (1, "bf16", "fp32 does not fit in the memory")


def test_a_limit_of_another_kind_ends_the_search_but_not_the_training(gpu, monkeypatch, caplog):
    def trial(fabric, network, train, loss, batch, side):
        def steps():
            if batch > 4 or batch < gpu.least:
                raise RuntimeError("input tensor must be smaller than INT_MAX")

        return steps

    monkeypatch.setattr(batch_size, "training_step", trial)
    gpu.least = 0
    with caplog.at_level(logging.INFO):
        assert choose().batch == 4
    assert "batches of 8 windows do not run here: input tensor must be smaller" in caplog.text
    gpu.least = 100  # not even one runs: that is an error, not a lack of memory
    with pytest.raises(RuntimeError, match="INT_MAX"):
        choose()


def test_a_batch_of_one_large_window_holds_many_small_ones():
    one = TrainSettings(batch_size=1, precision="fp32", device="cpu")
    assert choose(one, sides=[4, 16]).batch == 1  # 16 windows of 4 px, or one of 16
    with pytest.raises(SettingsError, match="a window of 4 px is one pixel"):
        choose(one, sides=[4])


def test_a_gpu_that_is_too_small_for_one_window_is_told_with_the_way_out(gpu):
    gpu.fp32 = 0
    with pytest.raises(
        SettingsError, match=r"not even one window of 16 px fits .*smaller train\.window or encoder"
    ):
        choose()
    gpu.fp32 = 1  # and two do not: batch norm has nothing to learn from
    with pytest.raises(SettingsError, match=r"window of 4 px is one pixel .*larger train\.batch-size \(now 1\)"):
        choose(sides=[4])


def test_a_trial_leaves_network_and_random_numbers_as_they_were(gpu):
    torch.manual_seed(1)
    network = build_network(NETWORK)
    before, state = {k: v.clone() for k, v in network.state_dict().items()}, torch.get_rng_state()
    choose_step(AUTO, network, CROSS_ENTROPY, sides=[16], samples=1000)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_the_plan_of_a_run_takes_the_same_batch(gpu):
    found = estimate_training(NETWORK, AUTO, window=16, windows=1000, held_out=9)
    assert (found.batch, found.steps) == (20, 50)
    assert "20 windows of 16 px (auto: 20 windows fit in the memory, more do not):" in "\n".join(found.lines())


def test_a_resumed_training_keeps_its_batch(gpu, project, tmp_path, caplog):
    plan = plan_of(project, batch_size="auto", samples=48)
    gpu.fp32 = 9
    caplog.set_level(logging.INFO)
    whole = train(plan, tmp_path / "whole")
    assert whole.training["batch_size"] == 8
    with pytest.raises(StopError):
        train(plan, tmp_path / "parts", on_epoch=stop_after(1))
    gpu.fp32 = 4  # somebody else uses the GPU now
    assert train(plan, tmp_path / "parts").training["batch_size"] == 8
    assert "in batches of 8 (auto: 8 windows fit in the memory, more do not)" in caplog.text
    assert "in batches of 8 (as before)" in caplog.text
    assert same_weights(tmp_path / "whole", tmp_path / "parts")


# --- memory ------------------------------------------------------------------------------------------------


def _fail(error):
    raise error


def _out_of_memory():
    _fail(torch.cuda.OutOfMemoryError("CUDA out of memory"))


@pytest.fixture
def cuda(monkeypatch):
    """CUDA's memory: 1,000 bytes free, 50 held; `used` at the peak. It has to be started before it is asked."""
    memory = SimpleNamespace(used=0, started=False, cleared=0)

    def start_and_tell():
        memory.started = True
        return 1000, 2000

    def reset():
        if not memory.started:
            raise RuntimeError("invalid argument to reset_peak_memory_stats")

    fakes = {
        "mem_get_info": start_and_tell, "memory_reserved": lambda: 50, "reset_peak_memory_stats": reset,
        "synchronize": list, "max_memory_reserved": lambda: 50 + memory.used,
        "empty_cache": lambda: setattr(memory, "cleared", memory.cleared + 1),
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return memory


@pytest.mark.parametrize(
    ("work", "used", "fits"),
    [(list, 800, True), (list, 900, True), (list, 901, False), (_out_of_memory, 0, False)],
)
def test_a_tenth_of_the_free_memory_is_left(cuda, work, used, fits):
    cuda.used = used
    assert fits_in_memory(work) is fits
    assert cuda.cleared


def test_errors_of_another_kind_are_not_taken_for_a_lack_of_memory(cuda):
    with pytest.raises(RuntimeError, match="without a kernel"):
        fits_in_memory(lambda: _fail(RuntimeError("a layer without a kernel")))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_batch_that_is_found_on_a_real_gpu_trains(precision):
    train = TrainSettings(batch_size="auto", precision=precision)
    network = build_network(UNetSettings(4, 3, "resnet18"))
    found = choose_step(train, network, CROSS_ENTROPY, sides=[256], samples=4096)
    assert found.batch >= 4
    made = training_step(make_fabric("auto", precision), network, train, CROSS_ENTROPY, found.batch, 256)
    for _ in range(3):
        made()


@pytest.mark.parametrize("targets", ["labels", "fractions"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_a_step_of_a_trial_is_one_of_training(targets, optimizer):
    torch.manual_seed(0)
    network = build_network(NETWORK)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    train = TrainSettings(targets=targets, optimizer=optimizer, device="cpu")
    training_step(make_fabric("cpu", "fp32"), network, train, CROSS_ENTROPY, 2, 16)()
    assert [name for name, p in network.named_parameters() if torch.equal(p, before[name])] == []
