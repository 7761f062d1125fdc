"""adopt makes torch.nn's norms ours without touching anything else; release undoes it bit for bit."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from models import models, outputs_and_gradients
from torch import nn

import homeostat as hs
from homeostat.nn.preset import Preset

every_model = pytest.mark.parametrize("name", ["ResNet", "GPT", "UNet"])


def norms(model):
    return [m for m in model.modules() if type(m).__name__.endswith(("Norm", "Norm1d", "Norm2d", "Norm3d"))]


def bits(model):
    return {key: (value.dtype, value.numpy().tobytes()) for key, value in model.state_dict().items()}


@every_model
def test_adopting_changes_neither_outputs_nor_gradients_nor_memory(name):
    model, x = models()[name]
    ours = hs.adopt(copy.deepcopy(model))
    assert all(isinstance(m, Preset) for m in norms(ours))
    for training in (True, True, False):
        y, grads = outputs_and_gradients(model.train(training), x)
        z, ours_grads = outputs_and_gradients(ours.train(training), x)
        # float32 through up to 12 layers: a few roundings per layer, amplified where a ReLU is near its kink
        torch.testing.assert_close(z, y, rtol=1e-4, atol=1e-4)
        scale = max(grad.abs().max().item() for grad in grads.values())  # a bias before a norm has gradient 0
        for key, grad in grads.items():
            torch.testing.assert_close(ours_grads[key], grad, rtol=1e-3, atol=1e-5 * scale, msg=key)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-5, atol=1e-5, msg=key)


@every_model
def test_in_float64_adopting_agrees_to_rounding(name):
    model, x = models()[name]
    model, x = model.double(), x.double() if x.is_floating_point() else x
    ours = hs.adopt(copy.deepcopy(model))
    y, grads = outputs_and_gradients(model, x)
    z, ours_grads = outputs_and_gradients(ours, x)
    torch.testing.assert_close(z, y, rtol=1e-11, atol=1e-11)
    for key, grad in grads.items():
        torch.testing.assert_close(ours_grads[key], grad, rtol=1e-10, atol=1e-10, msg=key)


@every_model
def test_release_restores_classes_bits_and_behaviour(name):
    model, x = models()[name]
    before, kinds, text = bits(model), [type(m) for m in model.modules()], repr(model)
    buffers, y = [key for key, _ in model.named_buffers()], model.eval()(x)
    assert hs.release(hs.adopt(model)) is model
    assert bits(model) == before
    assert [type(m) for m in model.modules()] == kinds
    assert [key for key, _ in model.named_buffers()] == buffers
    assert repr(model) == text
    assert torch.equal(model(x), y)
    assert all(vars(m).keys() == vars(type(m)(*_arguments(m))).keys() for m in norms(model))


def _arguments(m):
    if isinstance(m, nn.GroupNorm):
        return m.num_groups, m.num_channels
    return (m.normalized_shape,) if hasattr(m, "normalized_shape") else (m.num_features,)


def test_every_object_stays_the_same_object():
    model, _ = models()["ResNet"]
    modules, tensors = list(map(id, model.modules())), list(map(id, model.parameters()))
    buffers = {key: id(b) for key, b in model.named_buffers()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    hs.adopt(model)
    assert list(map(id, model.modules())) == modules
    assert list(map(id, model.parameters())) == tensors
    assert buffers.items() <= {key: id(b) for key, b in model.named_buffers()}.items()
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == tensors


def test_hooks_modes_and_shared_modules_are_kept():
    shared = nn.BatchNorm1d(4)
    model = nn.Sequential(shared, nn.Linear(4, 4), shared)
    seen = []
    shared.register_forward_hook(lambda m, args, y: seen.append(type(m)))
    shared.register_forward_pre_hook(lambda m, args: (args[0] + 1,))
    model[1].eval()
    shared.eval()
    hs.adopt(model)
    model(torch.randn(3, 4))
    assert seen == [hs.nn.BatchNorm1d] * 2
    assert model[0] is model[2]
    assert not shared.training


def test_parametrizations_are_kept_and_trained():
    class Positive(nn.Module):
        def forward(self, w):
            return w.exp()

    model = nn.Sequential(nn.LayerNorm(4))
    nn.utils.parametrize.register_parametrization(model[0], "weight", Positive(), unsafe=True)
    twin = copy.deepcopy(model)
    hs.adopt(model)
    assert isinstance(model[0], hs.nn.LayerNorm)
    x = torch.randn(3, 4)
    torch.testing.assert_close(model(x), twin(x))
    model(x).pow(3).sum().backward()
    twin(x).pow(3).sum().backward()
    torch.testing.assert_close(
        model[0].parametrizations.weight.original.grad, twin[0].parametrizations.weight.original.grad
    )
    hs.release(model)
    assert isinstance(model[0], nn.LayerNorm)
    assert not isinstance(model[0], Preset)
    torch.testing.assert_close(model(x), twin(x))


def test_lazy_layers_are_adopted_before_and_after_their_first_input():
    model = hs.adopt(nn.Sequential(nn.LazyBatchNorm2d(), nn.LazyInstanceNorm2d()))
    assert type(model[0]) is hs.nn.LazyBatchNorm2d
    model(torch.randn(2, 3, 4, 4))
    assert type(model[0]) is hs.nn.BatchNorm2d
    hs.release(model)
    assert type(model[0]) is nn.BatchNorm2d


def test_what_is_left_alone_is_named_with_its_reason():
    class Mine(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x) * 2

    model = nn.ModuleDict(
        {
            "own": Mine(4),
            "sync": nn.SyncBatchNorm(4),
            "response": nn.LocalResponseNorm(2),
            "plain": nn.LayerNorm(4),
        }
    )
    with pytest.warns(UserWarning, match="homeostat.adopt left 3 alone") as record:
        hs.adopt(model)
    said = str(record[0].message)
    assert "own (Mine): a subclass of LayerNorm whose forward may differ" in said
    assert "sync (SyncBatchNorm): its statistics span processes" in said
    assert "response (LocalResponseNorm)" in said
    assert type(model["own"]) is Mine
    assert type(model["plain"]) is hs.nn.LayerNorm


def test_scripted_layers_are_left_alone():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(nn.LayerNorm(4)))
    with pytest.warns(UserWarning, match=r"compiled by torch\.jit\.script"):
        hs.adopt(nn.Sequential(scripted))


def test_release_keeps_what_torch_cannot_express():
    model = nn.Sequential(hs.nn.BatchNorm1d(3, source=hs.Batch()), hs.Norm("n c -> n"), hs.nn.LayerNorm(3))
    with pytest.warns(UserWarning, match="left 2 alone") as record:
        hs.release(model)
    assert "torch.nn has no source Batch()" in str(record[0].message)
    assert type(model[2]) is nn.LayerNorm


def test_adopting_twice_is_adopting_once():
    model, _ = models()["ResNet"]
    text = repr(hs.adopt(model))
    assert repr(hs.adopt(model)) == text


def test_an_adopted_model_is_saved_loaded_and_copied_like_any_other():
    model, x = models()["ResNet"]
    twin = copy.deepcopy(model)
    hs.adopt(model)(x)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    twin.load_state_dict(torch.load(file, weights_only=True))
    model.eval()
    torch.testing.assert_close(twin.eval()(x), model(x), rtol=1e-5, atol=1e-5)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))


def test_a_model_compiled_before_is_compiled_again_after_adoption():
    model = nn.Sequential(nn.BatchNorm1d(3))
    compiled = torch.compile(model, backend="aot_eager")
    x = torch.randn(8, 3)
    compiled(x)
    hs.adopt(model)
    compiled(x * float("nan"))
    assert model[0].num_batches_skipped == 1
    torch._dynamo.reset()
