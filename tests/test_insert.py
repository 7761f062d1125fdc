"""An inserted norm changes nothing where it can, and the certificate says by how much where it cannot."""

import copy

import pytest
import torch
from torch import nn

import homeostat as hs


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten())


def data():
    torch.manual_seed(1)
    return [torch.randn(6, 3, 9, 9) * 2 + 0.5 for _ in range(3)]


def largest_move(model, other, batches):
    with torch.no_grad():
        pairs = [(copy.deepcopy(model).eval()(x), copy.deepcopy(other).eval()(x)) for x in batches]
    return max(float((b - a).double().abs().max() / a.double().square().mean().sqrt()) for a, b in pairs)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("norm", [hs.nn.BatchNorm2d, nn.BatchNorm2d])
def test_an_inserted_batch_norm_leaves_the_function_as_it_was(norm, before):
    model, batches = net().train(), data()
    new, said = hs.insert(model, ["0", "2"], lambda x: norm(x.shape[1]), batches, before=before)
    assert [type(new[i].norm) for i in (0, 2)] == [norm] * 2
    assert said.drift == pytest.approx(largest_move(model, new, batches), rel=1e-4, abs=1e-9)
    assert said.drift < 1e-4
    assert largest_move(model, new, [torch.randn(2, 3, 9, 9) * 5]) < 1e-4  # for any other input too
    assert [change.note for change in said.changed] == ["", ""]
    assert all(m.training for m in new.modules())
    x = copy.deepcopy(new).eval()
    seen = torch.cat(batches) if before else torch.cat([model[0](b) for b in batches])
    torch.testing.assert_close(x[0].norm.running_mean, seen.mean((0, 2, 3)).detach(), rtol=1e-4, atol=1e-5)


def test_a_norm_that_measures_each_sample_cannot_and_how_far_off_it_is_is_measured():
    model, batches = net(), data()
    new, said = hs.insert(model, "2", hs.nn.GroupNorm(2, 8), batches)
    (change,) = said.changed
    with torch.no_grad():
        x = torch.cat([model[:3](b) for b in batches]).double()
        y = torch.cat([new[:3](b) for b in batches]).double()
    assert change.off == pytest.approx(float((y - x).norm() / (x - x.mean()).norm()), rel=1e-4)
    assert change.drift == pytest.approx(
        max(float((b - a).abs().max() / a.square().mean().sqrt()) for a, b in zip(x.split(6), y.split(6), strict=True)),
        rel=1e-4,
    )
    assert said.drift == pytest.approx(largest_move(model, new, batches), rel=1e-4)
    assert "each sample's own" in change.note
    assert "2 (Conv2d) has a GroupNorm" in str(said)


def test_each_place_has_a_norm_of_its_own_and_undoing_takes_them_out():
    model, batches = net(), data()
    norm = hs.nn.BatchNorm2d(8)
    new, said = hs.insert(model, ["0", "2"], norm, batches)
    assert len({id(new[0].norm), id(new[2].norm), id(norm)}) == 3
    assert norm.running_mean.tolist() == [0] * 8
    with torch.no_grad():
        new[0].weight.add_(1)  # the inner layer's attributes are there
    back = said.undo(new)
    assert list(back.state_dict()) == list(model.state_dict())
    assert torch.equal(back[0].weight, model[0].weight + 1)
    assert torch.equal(back[2].weight, model[2].weight)
    assert said.undo(new, inplace=True) is new
    assert type(new[0]) is nn.Conv2d
    with pytest.raises(ValueError, match="nothing was inserted at 0"):
        said.undo(model)


def test_the_model_given_stays_as_it_is_unless_it_is_asked_for():
    model, batches = net(), data()
    before = copy.deepcopy(model.state_dict())
    hs.insert(model, "0", hs.nn.BatchNorm2d(8), batches)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    same, _ = hs.insert(model, "0", hs.nn.BatchNorm2d(8), batches, inplace=True)
    assert same is model
    calls.clear()
    model(batches[0])
    assert calls == [1]
    with pytest.raises(ValueError, match="the model is itself the layer"):
        hs.insert(nn.Linear(3, 3), "", nn.BatchNorm1d(3), [torch.randn(4, 3)], inplace=True)
    alone, said = hs.insert(nn.Linear(3, 3), "", nn.BatchNorm1d(3), [torch.randn(4, 3)])
    assert said.drift < 1e-4
    assert type(said.undo(alone)) is nn.Linear


def test_shared_layers_tuples_and_keywords():
    class Pair(nn.Module):
        def forward(self, *, x, more=1):
            return x * more, x

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.pair = nn.Linear(6, 6), Pair()
            self.again = self.lin

        def forward(self, x):
            return self.again(self.pair(x=self.lin(x))[0])

    model, batches = Model(), [torch.randn(9, 6)]
    for before in (False, True):
        new, said = hs.insert(model, ["lin", "pair"], hs.nn.BatchNorm1d(6), batches, before=before)
        assert new.lin is new.again
        assert [change.layer for change in said.changed] == ["lin", "pair"]
        assert {name for name, _ in new.named_modules() if name.endswith("norm")} == {"lin.norm", "pair.norm"}


def test_what_cannot_be_done_is_said():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.idle = nn.Embedding(5, 6), nn.Linear(6, 6)
            self.compiled = torch.compile(nn.Linear(6, 6), backend="eager")

        def forward(self, x):
            return self.words(x)

    batches = [torch.tensor([[0, 1], [2, 3]])]
    _, said = hs.insert(Model(), ["words", "idle", "compiled"], hs.nn.LayerNorm(6), batches, before=True)
    left = dict(said.left)
    assert "no tensor of fractions" in left["words"]
    assert "do not reach it" in left["idle"]
    assert "torch.compile" in left["compiled"]
    _, said = hs.insert(Model(), "words", hs.nn.LayerNorm(6, elementwise_affine=False), batches)
    assert "has no gain to set" in dict(said.left)["words"]
    with pytest.raises(TypeError, match="makes one of a tensor"):
        hs.insert(Model(), "words", hs.nn.LayerNorm, batches)
    with pytest.raises(ValueError, match="no layer of that name"):
        hs.insert(Model(), "head", hs.nn.LayerNorm(6), batches)


def test_a_norm_inside_an_encoder_layer_that_computes_all_at_once_is_called():
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1).eval()
    x = torch.randn(3, 5, 8)
    new, said = hs.insert(model, "layers.0.linear1", hs.nn.LayerNorm(16), [x])
    assert said.drift == pytest.approx(largest_move(model, new, [x]), rel=1e-4)
    assert said.drift > 0.01
    assert said.undo(new).layers[0].activation_relu_or_gelu == 1


@pytest.mark.parametrize("source", [hs.Synced(), hs.Ghost(2), hs.Frozen(hs.Synced())], ids=str)
def test_sources_around_a_running_average_are_set_like_it(source):
    model, batches = net(), data()
    _, said = hs.insert(model, "0", lambda x: hs.nn.BatchNorm2d(8, source=source), batches)
    assert said.drift < 1e-5


def test_a_factory_that_makes_no_module_and_a_scripted_model_are_refused():
    with pytest.raises(TypeError, match="gave None, which is no module"):
        hs.insert(net(), "0", lambda x: None, data())
    with pytest.raises(ValueError, match=r"compiled by torch\.jit\.script"):
        hs.insert(torch.jit.script(net()), "0", hs.nn.BatchNorm2d(8), data())
