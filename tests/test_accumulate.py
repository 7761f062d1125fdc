"""One batch in several parts: what is remembered is that of the whole, and its gradient can be had exactly."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import homeostat as hs

X = torch.randn(12, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 3
Y = torch.randn(12, 4, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
SPLITS = [(4, 4, 4), (7, 1, 4)]
SOURCES = [
    hs.Running(0.3),
    hs.Cumulative(),
    hs.Running("auto"),
    hs.Renorm(0.3),
    hs.Shrunk(4),
    hs.Mixed(),
    hs.Virtual(),
    hs.Batch(),
]


def model(source):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), hs.nn.BatchNorm2d(4, source=source), nn.SiLU(), nn.Dropout(0.3),
        nn.Conv2d(4, 4, 1), hs.nn.BatchNorm2d(4, source=source), nn.GroupNorm(2, 4), hs.nn.BatchNorm2d(4),
    ).double()  # fmt: skip


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_memory_takes_one_step_with_the_moments_of_all_parts(source, split):
    one = hs.nn.BatchNorm2d(3, source=source).double()
    other = copy.deepcopy(one)
    for _ in range(2):
        one(X)
        for part in hs.accumulate(other, X.split(split)):
            other(part)
    for key, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, rtol=1e-12, atol=1e-12, msg=key)
    assert other.source == one.source


def test_instance_norm_averages_its_parts():
    one = hs.nn.InstanceNorm2d(3, track_running_stats=True).double()
    other = copy.deepcopy(one)
    one(X)
    for part in hs.accumulate(other, X.split(4)):
        other(part)
    torch.testing.assert_close(other.running_mean, one.running_mean)
    torch.testing.assert_close(other.running_var, one.running_var)


def test_a_loop_that_ends_early_remembers_nothing():
    layer = hs.nn.BatchNorm2d(3).double()
    before = copy.deepcopy(layer.state_dict())
    for part in hs.accumulate(layer, X.split(4)):
        layer(part)
        break
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert layer.source == hs.Running(0.1)


def test_a_layer_that_is_called_twice_takes_two_steps():
    one = hs.nn.BatchNorm2d(3).double()
    other = copy.deepcopy(one)
    one(X)
    one(X + 1)
    for part in hs.accumulate(other, X.split((7, 1, 4))):
        other(part)
        other(part + 1)
    for key, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, rtol=1e-12, atol=1e-12, msg=key)


def test_ghost_batches_are_averaged_over_parts_with_their_unbiased_variances():
    one = hs.nn.BatchNorm2d(3, source=hs.Ghost(2, hs.Running(1.0))).double()
    for part in hs.accumulate(one, X.split((4, 2, 6))):
        one(part)
    ghosts = [X[i : i + 2].transpose(0, 1).flatten(1).var(1) for i in range(0, 12, 2)]
    parts = [torch.stack(ghosts[i:j]).mean(0) for i, j in ((0, 2), (2, 3), (3, 6))]
    torch.testing.assert_close(one.running_var, torch.stack(parts).mean(0))


def test_layers_that_nobody_can_hold_are_named():
    net = nn.Sequential(nn.BatchNorm2d(3), hs.nn.PowerNorm(3)).double()
    with pytest.warns(UserWarning, match=r"leaves 2 alone: 0 \(BatchNorm2d\): torch's, hs.adopt makes it ours; 1"):
        list(hs.accumulate(net, X.split(4)))
    with pytest.raises(TypeError, match=r"does not know what these share between samples: 0 \(BatchNorm2d\): torch's"):
        hs.as_one(net, X.split(4), lambda net, part: net(part).sum())


def test_a_part_that_is_not_finite_is_left_out():
    layer, bad = hs.nn.BatchNorm2d(3, momentum=1.0).double(), X.clone()
    bad[5] = torch.nan
    for part in hs.accumulate(layer, bad.split(4)):
        layer(part)
    rest = torch.cat([X[:4], X[8:]])
    torch.testing.assert_close(layer.running_mean, rest.mean((0, 2, 3)))
    torch.testing.assert_close(layer.running_var, rest.var((0, 2, 3)))


def loss(net, part):
    rows = part.long()
    return (net(X[rows]) * Y[rows]).square().sum()


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("source", [hs.Running(0.3), hs.Renorm(0.3), hs.Shrunk(4), hs.Virtual()], ids=str)
def test_as_one_gives_the_gradient_and_the_memory_of_one_batch(source, split):
    one = model(source)
    one[3].p = 0.0  # its chances are drawn part by part, and so are others than those of one batch
    other, rows = copy.deepcopy(one), torch.arange(12)
    for _ in range(2):
        want = loss(one, rows)
        want.backward()
        got = hs.as_one(other, rows.split(split), loss)
        torch.testing.assert_close(got, want.detach())
    size = max(float(p.grad.abs().max()) for p in one.parameters())
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=0, atol=1e-11 * size, msg=name)
    for key, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, msg=key)


def test_accumulating_alone_does_not():
    one, rows = model(hs.Running()).train(), torch.arange(12)
    one[3].p = 0.0
    other = copy.deepcopy(one)
    loss(one, rows).backward()
    for part in hs.accumulate(other, rows.split(4)):
        loss(other, part).backward()
    assert (one[0].weight.grad - other[0].weight.grad).abs().max() > 0.01 * one[0].weight.grad.abs().max()


def test_as_one_draws_the_same_chances_in_every_pass():
    net = model(hs.Running())
    gradients = []
    for _ in range(2):
        torch.manual_seed(3)
        net.zero_grad()
        hs.as_one(net, torch.arange(12).split(4), loss)
        gradients.append(net[0].weight.grad.clone())
    assert torch.equal(*gradients)
    losses = []
    for step in (-1e-6, 1e-6):
        moved = copy.deepcopy(net)
        with torch.no_grad():
            moved[0].weight[0, 0, 0, 0] += step
        torch.manual_seed(3)
        losses.append(hs.as_one(moved, torch.arange(12).split(4), loss))
    torch.testing.assert_close((losses[1] - losses[0]) / 2e-6, gradients[0][0, 0, 0, 0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("source", [hs.Ghost(4), hs.Mixed(), hs.Blended()], ids=str)
def test_as_one_refuses_what_it_cannot_join(source):
    with pytest.raises(TypeError, match=r"5 \(BatchNorm2d\): it measures"):
        hs.as_one(model(source), torch.arange(12).split(4), loss)


def test_as_one_refuses_checkpointing_and_no_parts():
    net = model(hs.Running())
    with pytest.raises(RuntimeError, match="as_one does not take a model that checkpoints"):
        hs.as_one(net, X.split(4), lambda net, part: checkpoint(net, part, use_reentrant=False).square().sum())
    with pytest.raises(ValueError, match="there are no parts"):
        hs.as_one(net, [], loss)


def test_as_one_refuses_parts_that_call_other_layers():
    net = model(hs.Running())

    def odd(net, part):
        y = net[1](net[0](X[part]))
        return (net[5](y) if len(part) > 3 else y).sum()

    with pytest.raises(ValueError, match="each must call the same"):
        hs.as_one(net, torch.arange(12).split((5, 5, 2)), odd)
    assert net[1].source == hs.Running(0.1)
