"""Frozen statistics stay what they are and are used, whatever the mode; unfreezing lets them run from there."""

import copy
import math

import pytest
import torch
from torch import nn

import homeostat as hs

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0)) * 3 + 2


def net(norm):
    torch.manual_seed(1)
    model = nn.Sequential(norm(4), nn.Linear(4, 4), norm(4), nn.LayerNorm(4))
    for _ in range(3):
        model(X)
    return model


def outputs(model, x=X):
    with torch.no_grad():
        return model(x)


def buffers(model):
    return {name: b.clone() for name, b in model.named_buffers() if "running" in name}


def assert_same_tensors(a, b):
    assert all(torch.equal(a[name], b[name]) for name in b)


NORMS = {
    "torch": nn.BatchNorm1d,
    "ours": hs.nn.BatchNorm1d,
    "renorm": lambda c: hs.nn.BatchNorm1d(c, source=hs.Renorm()),
    "frame": lambda c: hs.Norm("n c -> c", source=hs.Running(), gain=hs.Learned("c"), c=c),
    "online": hs.nn.OnlineNorm,
}


@pytest.mark.parametrize("name", NORMS)
def test_a_frozen_copy_in_training_gives_what_the_model_gives_in_evaluation(name):
    model = net(NORMS[name])
    before = copy.deepcopy(model.state_dict())
    new, certificate = hs.freeze(model, [X])
    want = outputs(copy.deepcopy(model).eval())
    assert_same_tensors(before, model.state_dict())
    held = buffers(new)
    new.eval().train()
    torch.testing.assert_close(outputs(new), want, rtol=1e-5, atol=1e-5)
    outputs(new, X + 9)
    assert_same_tensors(held, buffers(new))
    assert [change.layer for change in certificate.changed] == ["0", "2"]
    assert certificate.drift < 1e-5
    assert max(change.drift for change in certificate.changed) < 1e-5
    assert certificate.samples == 16


@pytest.mark.parametrize("name", NORMS)
def test_unfreezing_lets_statistics_run_on_from_where_they_were(name):
    model = net(NORMS[name])
    again, certificate = hs.unfreeze(hs.freeze(model)[0])
    assert [change.layer for change in certificate.changed] == ["0", "2"]
    assert_same_tensors(buffers(model), buffers(again))
    outputs(model.train(), X + 9)
    outputs(again.train(), X + 9)
    for key, b in buffers(model).items():
        torch.testing.assert_close(buffers(again)[key], b, rtol=1e-5, atol=1e-5)
    assert "it is not frozen" in dict(hs.unfreeze(again)[1].left).get("0", "it is not frozen")


def test_gains_learn_on_unless_they_are_held_too_and_come_back():
    model = net(nn.BatchNorm1d)
    model[0].bias.requires_grad_(False)
    assert hs.freeze(model)[0][2].weight.requires_grad
    held, _ = hs.freeze(model, affine=False)
    assert not any(p.requires_grad for layer in (held[0], held[2]) for p in layer.parameters())
    assert held[1].weight.requires_grad
    free, _ = hs.unfreeze(hs.freeze(held, affine=False)[0])
    assert [p.requires_grad for p in free[0].parameters()] == [True, False]
    assert all(p.requires_grad for p in free[2].parameters())


def test_layers_are_chosen_by_name_and_in_place_when_asked():
    model = net(nn.BatchNorm1d)
    norm, weight = model[2], model[2].weight
    same, certificate = hs.freeze(model, layers="2", inplace=True)
    assert same is model
    assert model[2] is norm
    assert norm.weight is weight
    assert [(change.layer, change.kind) for change in certificate.changed] == [("2", "BatchNorm1d")]
    assert math.isnan(certificate.drift)
    assert type(model[0]) is nn.BatchNorm1d
    back = hs.release(hs.unfreeze(model, inplace=True)[0])
    assert type(back[2]) is nn.BatchNorm1d
    with pytest.raises(ValueError, match="no layer of that name"):
        hs.freeze(model, layers="head")


class Odd(nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(x) * 2


class Still(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(4))

    def forward(self, x):
        return x - self.running_mean


def test_what_cannot_be_frozen_is_named_with_the_reason():
    model = nn.Sequential(Odd(4), Still(), nn.SyncBatchNorm(4), nn.GroupNorm(2, 4), nn.BatchNorm1d(4))
    new, certificate = hs.freeze(model)
    left = dict(certificate.left)
    assert "a subclass of BatchNorm1d" in left["0"]
    assert "no norm that is known" in left["1"]
    assert "span processes" in left["2"]
    assert "3" not in left
    assert [change.layer for change in certificate.changed] == ["4"]
    assert type(new[0]) is Odd


class Restless(hs.nn.BatchNorm1d):
    """Measures in training, frozen or not."""

    def forward(self, x):
        return nn.functional.batch_norm(x, None, None, training=True) if self.training else super().forward(x)


def test_the_certificate_compares_training_with_evaluation():
    model, restless = nn.Sequential(hs.nn.BatchNorm1d(4)), nn.Sequential(Restless(4))
    assert hs.freeze(model, [X, X[:5]])[1].drift == 0
    _, certificate = hs.freeze(restless, [X, X[:5]])
    before = X.double() / (1 + 1e-5) ** 0.5
    after = torch.nn.functional.batch_norm(X.double(), None, None, training=True)
    few = torch.nn.functional.batch_norm(X[:5].double(), None, None, training=True)
    steps = [(a - b).abs().max() / b.square().mean().sqrt() for a, b in ((after, before), (few, before[:5]))]
    assert certificate.drift == pytest.approx(float(max(steps)), rel=1e-5)
    assert certificate.changed[0].drift == certificate.drift
    assert "frozen: 1 layers on 21 samples" in str(certificate)
