"""Statistics are safe: no batch counts twice, none that is not finite counts at all, and a trial leaves no trace."""

import copy
import math

import pytest
import torch
from presets import HOLDING, REMEMBERING, assert_same, everything, make
from torch.utils.checkpoint import checkpoint

import homeostat as hs
from homeostat import memory
from homeostat.kernels import cpu

remembering = pytest.mark.parametrize("name", REMEMBERING)
holding = pytest.mark.parametrize("name", HOLDING)


def buffers(layer):
    return {name: b.clone() for name, b in layer.named_buffers()}


def taking_in(layer, x):
    """A forward that changes memory, whatever the source: virtual batch norm's does when it is recorded."""
    with hs.recording():
        return layer(x)


def assert_moved(layer, before):
    assert any(not torch.equal(b, before[name]) for name, b in layer.named_buffers() if name != "num_batches_skipped")


@pytest.fixture(params=["native", "tensor operations"])
def path(request, monkeypatch):
    if request.param == "native" and cpu.native is None:
        pytest.skip(f"no native part: {cpu.info().get('reason')}")
    if request.param != "native":
        monkeypatch.setattr(cpu, "native", None)
    return request.param


@holding
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_batch_changes_nothing_and_is_counted(name, bad, path):
    layer, x = make(name)
    taking_in(layer, x)
    before = buffers(layer)
    poisoned = x.clone()
    poisoned.view(-1)[5] = bad
    taking_in(layer, poisoned)
    assert layer.num_batches_skipped == 1
    assert_same(buffers(layer), before | {"num_batches_skipped": torch.tensor(1)}, 0, 0)
    taking_in(layer, x + 1)
    assert_moved(layer, before)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_reference_that_is_recorded_under_checkpointing_is_recorded_once(reentrant):
    layer, x = make("Virtual")
    with hs.recording():  # the backward pass too, which computes the forward again
        want = everything(copy.deepcopy(layer), x)
        assert_same(everything(layer, x, lambda z: checkpoint(layer, z, use_reentrant=reentrant)), want, 0, 0)


def test_a_non_finite_batch_is_skipped_in_compiled_code_too():
    layer, x = make("BatchNorm2d")
    compiled = torch.compile(layer, fullgraph=True)
    compiled(x)
    before = buffers(layer)
    compiled(x * math.nan)
    assert_same(buffers(layer), before | {"num_batches_skipped": torch.tensor(1)}, 0, 0)


def test_a_batch_too_large_for_the_buffers_dtype_is_skipped():
    layer = hs.nn.BatchNorm1d(2).half()
    layer(torch.tensor([[-6e4, 0.0], [6e4, 1.0]], dtype=torch.float16))  # a variance of 7e9
    assert layer.num_batches_skipped == 1
    assert torch.isfinite(layer.running_var).all()


def test_native_and_tensor_operations_remember_the_same(monkeypatch):
    if cpu.native is None:
        pytest.skip(f"no native part: {cpu.info().get('reason')}")
    for name in REMEMBERING:
        layer, x = make(name)
        other = copy.deepcopy(layer)
        for step in range(5):
            layer(x + step)
        with monkeypatch.context() as patch:
            patch.setattr(cpu, "native", None)
            for step in range(5):
                other(x + step)
        assert_same(buffers(layer), buffers(other), 2.0**-23, 0)  # one rounding on store


def test_cumulative_memory_is_the_mean_of_all_batches():
    layer = hs.nn.BatchNorm1d(3, momentum=None)
    torch.manual_seed(0)
    batches = [torch.randn(8, 3) + i for i in range(7)]
    for batch in batches:
        layer(batch)
    torch.testing.assert_close(layer.running_mean, torch.stack([b.mean(0) for b in batches]).mean(0))
    torch.testing.assert_close(layer.running_var, torch.stack([b.var(0) for b in batches]).mean(0))


@remembering
def test_gradient_descent_through_memory_survives_two_forwards_before_one_backward(name):
    layer, x = make(name)
    (layer(x).sum() + layer(x + 1).pow(2).sum()).backward()
    assert layer.num_batches_tracked == 2


@holding
def test_a_trial_leaves_no_trace_also_after_an_error(name, path):
    layer, x = make(name)
    taking_in(layer, x)
    before = buffers(layer)
    with hs.trial(layer) as model:
        taking_in(model, x * 5)
        assert_moved(layer, before)
    assert_same(buffers(layer), before, 0, 0)

    def fails():
        with hs.trial(layer):
            taking_in(layer, x * 7)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert_same(buffers(layer), before, 0, 0)


def test_a_trial_reverts_torchs_own_layers_too():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), hs.nn.BatchNorm1d(3))
    with hs.trial(model):
        model(torch.randn(8, 3))
    assert all(layer.num_batches_tracked == 0 and not layer.running_mean.any() for layer in model)


@holding
def test_frozen_stays_frozen_through_train(name):
    layer, x = make(name)
    for step in range(3):
        taking_in(layer, x + step)
    want = copy.deepcopy(layer).eval()(x)
    before, source = buffers(layer), layer.source
    assert hs.freeze(layer, inplace=True)[0] is layer
    layer.eval()
    layer.train()
    torch.testing.assert_close(layer(x), want, rtol=0, atol=0)
    taking_in(layer, x + 9)
    assert_same(buffers(layer), before, 0, 0)
    hs.unfreeze(layer, inplace=True)
    assert layer.source == source
    taking_in(layer, x)
    assert_moved(layer, before)


def test_a_frozen_layer_still_learns_its_gain_and_passes_gradients_as_constants():
    layer, x = make("BatchNorm2d")
    layer(x)
    hs.freeze(layer, inplace=True)
    got = everything(layer, x)
    scale = layer.weight / (layer.running_var + layer.eps).sqrt()
    w = torch.linspace(-1, 1, x.numel()).view_as(x)
    torch.testing.assert_close(got["dx"], w * scale.view(1, -1, 1, 1))
    assert got["grad of weight"].abs().sum() > 0


def test_a_source_given_at_construction_comes_back_after_freezing():
    frozen, _ = hs.freeze(hs.nn.BatchNorm1d(3, source=hs.Running(0.25)))
    layer, _ = hs.unfreeze(frozen)
    assert layer.source == hs.Running(0.25)


def test_an_empty_batch_neither_fails_nor_counts():
    layer, x = make("BatchNorm2d")
    layer(x)
    before = buffers(layer)
    y = layer(x[:0])
    assert y.shape == x[:0].shape
    assert torch.isfinite(layer.running_mean).all()
    assert_same(
        {k: v for k, v in buffers(layer).items() if "num" not in k},
        {k: v for k, v in before.items() if "num" not in k},
        0,
        0,
    )


def test_memory_is_written_by_remember_alone():
    """No other line that a forward runs through assigns into a buffer."""
    import ast
    from pathlib import Path

    writers = {"copy_", "add_", "mul_", "lerp_", "zero_", "fill_", "update_running"}
    found = set()
    package = Path(memory.__file__).parent
    verbs = {"surgery", "recognising", "machines", "doctor"}  # they change models, put them back, or make sick ones
    for path in (p for p in package.rglob("*.py") if p.relative_to(package).parts[0] not in verbs):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in writers:
                found.add(path.name)
    # norm.py and preset.py reset to the beginning, states.py restores a snapshot, running.py is remember's native half
    # fused.py and registered.py copy gradients and results into arrays of their own
    # exchange.py copies a header
    # identity.py and weights.py set gains and memory because they were asked to
    own = {"exchange.py", "fused.py", "registered.py", "identity.py", "weights.py"}
    assert found == own | {"memory.py", "norm.py", "preset.py", "states.py", "running.py"}


def test_a_trial_reverts_buffers_that_were_exchanged_and_lazy_layers_that_woke_up():
    layer, lazy = hs.nn.BatchNorm1d(3), hs.nn.LazyBatchNorm1d()
    x = torch.randn(8, 3) + 4
    with hs.trial(torch.nn.Sequential(layer, lazy)) as model:
        model(x)
        layer.double()(x.double())
    assert not layer.running_mean.any()
    assert not lazy.running_mean.any()
    assert lazy.num_batches_tracked == 0


def test_masked_instances_are_averaged_over_those_that_were_measured():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 10, dtype=torch.float64) + 5
    where = torch.ones(4, 1, 10, dtype=torch.bool)
    where[2:] = False
    where[1, 0, 6:] = False
    layer = hs.Norm("n c t -> n c", source=hs.Running(1.0), c=3, dtype=torch.float64)
    layer(x, where=where)
    parts = [x[0], x[1, :, :6]]
    torch.testing.assert_close(layer.running_mean, torch.stack([p.mean(1) for p in parts]).mean(0))
    torch.testing.assert_close(layer.running_var, torch.stack([p.var(1) for p in parts]).mean(0))


def test_a_layer_made_in_inference_mode_runs_there():
    with torch.inference_mode():
        layer = hs.nn.BatchNorm1d(3)
        layer(torch.randn(8, 3))
    assert layer.num_batches_tracked == 1


def test_a_missing_count_of_batches_is_no_error():
    layer = hs.nn.BatchNorm1d(3)
    layer.num_batches_tracked = None
    layer(torch.randn(8, 3) + 9)
    assert (layer.running_mean > 0.5).all()


def test_a_pruned_batch_norm_keeps_working_once_adopted():
    layer = torch.nn.BatchNorm1d(8)
    layer.weight, layer.bias = (torch.nn.Parameter(p[:4].detach()) for p in (layer.weight, layer.bias))
    layer.running_mean, layer.running_var = layer.running_mean[:4].clone(), layer.running_var[:4].clone()
    x = torch.randn(5, 4)
    want = copy.deepcopy(layer)(x)
    torch.testing.assert_close(hs.adopt(layer)(x), want, rtol=1e-5, atol=1e-5)
