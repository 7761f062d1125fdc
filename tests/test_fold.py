"""A folded model gives what the model gave, and what cannot be folded exactly is left alone, by name."""

import copy
import importlib
import importlib.util
import sys
import warnings
from unittest.mock import MagicMock

import onnxruntime
import pytest
import torch
from models import models
from torch import nn

import homeostat as hs

X = torch.randn(6, 4, 9, 9, generator=torch.Generator().manual_seed(0))


def lively(model):
    """Statistics and gains that are not the identity."""
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in model.modules():
            if getattr(layer, "running_mean", None) is not None:
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.3, 3)
            if "Norm" in type(layer).__name__:
                for p in layer._parameters.values():
                    if p is not None:
                        p.uniform_(-2, 2)
    return model


def chain(*layers):
    torch.manual_seed(2)
    return lively(nn.Sequential(*layers))


def outputs(model, x):
    with torch.no_grad():
        return copy.deepcopy(model).eval()(x)


def folded(model, x=X, **how):
    """Folded, and checked in float64 against the model; the changes and the reasons, by layer."""
    model = model.double()
    new, certificate = hs.fold(model, [x.double()], **how)
    torch.testing.assert_close(outputs(new, x.double()), outputs(model, x.double()), rtol=1e-11, atol=1e-11)
    return new, {change.layer: change for change in certificate.changed}, dict(certificate.left)


BEFORE = {
    "convolution": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "without bias": lambda: nn.Conv2d(4, 6, 3, bias=False),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4, padding="same"),
    "dilated, reflecting": lambda: nn.Conv2d(4, 6, 3, dilation=2, padding=2, padding_mode="reflect"),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1),
    "transposed, grouped": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False),
}


@pytest.mark.parametrize("name", BEFORE)
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm, hs.nn.BatchNorm2d])
def test_a_norm_goes_into_the_convolution_before_it(name, norm):
    first = BEFORE[name]()
    new, changed, left = folded(chain(first, norm(first.out_channels), nn.ReLU()))
    assert type(new[1]) is nn.Identity
    assert changed["1"].into == ("0",)
    assert not left


AFTER = {
    "convolution": lambda: nn.Conv2d(4, 6, 3, bias=False),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4, stride=2),
    "reflecting": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "replicating": lambda: nn.Conv2d(4, 6, 3, padding="same", padding_mode="replicate"),
    "circular": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
}


@pytest.mark.parametrize("name", AFTER)
def test_a_norm_goes_into_the_convolution_after_it_where_no_zeros_are_padded(name):
    new, changed, left = folded(chain(nn.ReLU(), nn.BatchNorm2d(4), AFTER[name](), nn.ReLU()))
    assert type(new[1]) is nn.Identity
    assert changed["1"].into == ("2",)
    assert not left


@pytest.mark.parametrize("after", [nn.Conv2d(4, 6, 3, padding=1), nn.ConvTranspose2d(4, 6, 3, groups=2)])
def test_a_shift_does_not_cross_a_border_and_a_scale_does(after):
    _, changed, left = folded(chain(nn.BatchNorm2d(4), after))
    assert not changed
    assert ("pads with zeros" if after.padding == (1, 1) else "is transposed") in left["0"]
    scale = chain(nn.BatchNorm2d(4), copy.deepcopy(after))
    nn.init.zeros_(scale[0].running_mean)
    nn.init.zeros_(scale[0].bias)
    _, changed, _ = folded(scale)
    assert changed["0"].into == ("1",)


class Padded(nn.Module):
    """A copy of what is normalized, longer along these axes, read by a convolution and perhaps by others."""

    def __init__(self, pads, mode, also=False):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)
        self.pads, self.mode, self.also = pads, mode, also

    def forward(self, x):
        y = nn.functional.pad(self.norm(x), self.pads, mode=self.mode)
        return self.conv(y) + (y.mean() if self.also else 0)


@pytest.mark.parametrize(
    ("pads", "mode", "also", "why"),
    [
        ((1, 1), "reflect", False, ""),
        ((1, 1), "constant", False, "constant_pad_nd"),
        ((1, 1), "reflect", True, "goes to mean"),
    ],
)
def test_padding_by_values_of_its_own_is_seen_through(pads, mode, also, why):
    _, changed, left = folded(lively(Padded((*pads, *pads), mode, also)))
    assert ("norm" in changed) == (not why)
    assert why in left.get("norm", "")


def test_linear_layers_take_norms_from_both_sides_and_norms_in_a_row_all_go():
    model = chain(nn.ReLU(), nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.Linear(4, 5, bias=False))
    model.extend([nn.BatchNorm1d(5), nn.Dropout(), hs.nn.BatchNorm1d(5, source=hs.Frozen()), nn.Tanh()])
    new, changed, left = folded(lively(model), X[:, :, 0, 0])
    assert [change.into for change in changed.values()] == [("3",)] * 4
    assert not left
    assert isinstance(new[3].bias, nn.Parameter)


@pytest.mark.parametrize("source", [hs.Running(), hs.Frozen(hs.Renorm())])
@pytest.mark.parametrize("gain", [None, hs.Learned("c"), hs.Around("c")])
def test_a_norm_in_any_frame_that_remembers_one_number_per_feature_goes(source, gain):
    norm = hs.Norm("... c -> c", source=source, gain=gain, eps=1e-3, c=5)
    _, changed, _ = folded(chain(nn.Linear(4, 5), norm, nn.Tanh()), X[..., :4])
    assert changed["1"].into == ("0",)
    norm = hs.Norm("n c t -> t", source=source, t=9)
    _, changed, left = folded(chain(nn.Conv1d(4, 9, 1), norm), X[:, 0, :4])
    assert not changed
    assert "another axis" in left["1"]


class Branching(nn.Module):
    """A convolution and a norm, used as `way` says."""

    def __init__(self, way):
        super().__init__()
        self.way, self.conv, self.norm, self.other = way, nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.kept = None

    def forward(self, x):
        return getattr(self, self.way)(x, self.conv(x))

    def residual(self, x, y):
        return self.norm(y) + y

    def shape_alone(self, x, y):
        return self.norm(y).view(y.shape[0], -1)[:, : y.numel()]

    def two_norms(self, x, y):
        return self.norm(y) + self.other(y)

    def called_twice(self, x, y):
        return self.norm(y) + self.conv(x + 1)

    def both_twice(self, x, y):
        return self.norm(y) + self.norm(self.conv(x + 1))

    def norm_twice(self, x, y):
        return self.norm(self.norm(y))

    def given_out(self, x, y):
        return self.norm(y), y

    def keeps(self, x, y):
        self.kept = y
        return self.norm(y)

    def changed_in_place(self, x, y):
        return self.norm(y.relu_())

    def a_view(self, x, y):
        return self.norm(y[:]) + self.norm(y)

    def weight_elsewhere(self, x, y):
        return self.norm(y) + self.conv.weight.sum()

    def weight_as_function(self, x, y):
        return self.norm(y) + nn.functional.conv2d(x, self.conv.weight)

    def gain_elsewhere(self, x, y):
        return self.norm(y) * self.norm.weight.mean()

    def as_numpy(self, x, y):
        return self.norm(y) + float(y.numpy().sum())


@pytest.mark.parametrize(
    ("way", "why"),
    [
        ("residual", "also goes to add"),
        ("two_norms", "also goes to other"),
        ("called_twice", "also goes to add"),
        ("norm_twice", "does not follow a linear layer"),
        ("given_out", "whoever keeps it"),
        ("keeps", "whoever keeps it"),
        ("changed_in_place", "also goes to relu_"),
        ("a_view", "does not follow a linear layer"),
        ("weight_elsewhere", "sum reads the weight of conv elsewhere"),
        ("weight_as_function", "also goes to add"),
        ("gain_elsewhere", "mean reads its tensors elsewhere"),
        ("as_numpy", "also goes to"),
    ],
)
def test_what_else_reads_a_tensor_is_seen_and_named(way, why):
    model = lively(Branching(way)).eval()
    before = copy.deepcopy(model.state_dict())
    new, certificate = hs.fold(model, [X])
    left = dict(certificate.left)
    assert not certificate.changed
    assert why in left["norm"]
    assert "do not reach it" in left["other"] or way == "two_norms"
    assert all(torch.equal(a, b) for a, b in zip(before.values(), new.state_dict().values(), strict=True))


@pytest.mark.parametrize("way", ["shape_alone", "both_twice"])
def test_what_only_looks_at_a_shape_or_always_calls_the_two_together_is_no_obstacle(way):
    _, changed, _ = folded(lively(Branching(way)))
    assert changed["norm"].into == ("conv",)


class Shared(nn.Module):
    """A linear layer on what is normalized, and on what is not."""

    def __init__(self, other):
        super().__init__()
        self.norm, self.linear, self.other = nn.BatchNorm1d(4), nn.Linear(4, 4), other

    def forward(self, x):
        return self.linear(self.norm(x)) + self.linear(self.other(x))


@pytest.mark.parametrize("other", [nn.Identity, lambda: nn.BatchNorm1d(4)])
def test_a_layer_that_is_also_given_something_else_takes_no_norm_before_it(other):
    _, certificate = hs.fold(lively(Shared(other())), [X[:, :, 0, 0]])
    assert not certificate.changed
    assert "linear is given other tensors too" in dict(certificate.left)["norm"]


def test_tied_weights_parametrizations_hooks_and_computed_weights_are_refused_by_name():
    tied = chain(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    spectral = chain(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.BatchNorm1d(4))
    hooked = chain(nn.Linear(4, 4), nn.BatchNorm1d(4))
    hooked[0].register_forward_hook(lambda *_: None)
    watched = chain(nn.Linear(4, 4), nn.BatchNorm1d(4))
    watched[1].register_forward_hook(lambda *_: None)
    gain = chain(nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.BatchNorm1d(4), dim=None))
    after = chain(nn.ReLU(), nn.BatchNorm1d(4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    reasons = {"shares its weight with": tied, "follows a weight that is computed": spectral, "0: it has hooks": hooked}
    reasons["goes to a weight that is computed"] = after
    for why, model in {**reasons, "it has hooks": watched, "parametrized": gain}.items():
        _, certificate = hs.fold(model, [X[:, :, 0, 0]])
        assert not certificate.changed
        assert why in dict(certificate.left)["1"]


def test_norms_that_measure_or_make_their_gain_stay_and_say_so():
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "a": nn.Conv2d(4, 4, 1),
            "group": nn.GroupNorm(2, 4),
            "batch": nn.BatchNorm2d(4, track_running_stats=False),
            "domain": hs.nn.BatchNorm2d(4, source=hs.Domain(2)),
            "auto": hs.Norm("n c ... -> c", source=hs.Running(), eps="auto", c=4),
            "given": hs.Norm("n c ... -> c", source=hs.Running(), gain=hs.Given("n c"), c=4),
        }
    )
    _, certificate = hs.fold(model, [X], forward=lambda m, x: m["group"](m["a"](x)))
    left = dict(certificate.left)
    assert list(left) == ["group", "batch", "domain", "auto", "given"]
    assert "it measures what it is given" in left["group"]
    assert "it measures what it is given" in left["batch"]
    assert "not one per channel" in left["domain"]
    assert "'auto'" in left["auto"]
    assert "made anew" in left["given"]


class Halved(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias / 2)


class Whole(nn.Conv2d):
    def forward(self, x):
        return nn.functional.conv2d(x, self.weight.data[:, :2].repeat(1, 2, 1, 1), self.bias)


class Backwards(nn.Conv2d):
    def forward(self, x):
        return nn.functional.conv_transpose2d(x, self.weight, self.bias)


class Odd(nn.BatchNorm2d):
    """A subclass that does something else."""

    def forward(self, x):
        return super().forward(x) * 1.01


@pytest.mark.parametrize(
    ("layer", "x", "why"),
    [
        (Halved(4, 4), X[:, :, 0, 0], "div reads the weight of 0 elsewhere"),
        (Backwards(4, 4, 3), X, "does not take its bias"),
        (Whole(4, 4, 3), X, "that is computed"),
    ],
)
def test_a_layer_whose_forward_takes_other_numbers_is_left(layer, x, why):
    norm = nn.BatchNorm1d(4) if x.dim() == 2 else nn.BatchNorm2d(4)
    _, certificate = hs.fold(chain(layer, norm), [x])
    assert not certificate.changed
    assert why in dict(certificate.left)["1"]


def test_parameters_that_are_slices_of_one_memory_are_not_tied():
    model = chain(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)).double()
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    for p, part in zip(model.parameters(), flat.split([p.numel() for p in model.parameters()]), strict=True):
        p.data = part.view_as(p)
    _, changed, _ = folded(model, X[:, :, 0, 0])
    assert changed["1"].into == ("0",)


def test_no_class_is_taken_at_its_word():
    _, certificate = hs.fold(chain(nn.Conv2d(4, 4, 1), Odd(4)), [X])
    assert "was not seen to do" in dict(certificate.left)["1"]


def test_gains_go_into_every_layer_after_them_when_asked():
    model, x = models()["GPT"]
    lively(model)
    for make in (lambda m: m, hs.adopt):
        new, certificate = hs.fold(make(model), [x], gains=True)
        assert [change.layer for change in certificate.changed] == [
            f"blocks.{i}.ln{j}" for i in range(3) for j in (1, 2)
        ]
        torch.testing.assert_close(outputs(new, x), outputs(model, x), rtol=1e-5, atol=1e-5)
        assert new.blocks[0]["ln1"].weight is None
        assert "shares its weight" in dict(certificate.left)["last"]


class HandNorm(nn.Module):
    """Somebody else's layer norm; `one`: the gain is learned around 1."""

    def __init__(self, one=0):
        super().__init__()
        self.weight, self.one = nn.Parameter(torch.rand(4) + 0.5), one

    def forward(self, x):
        return nn.functional.layer_norm(x, (4,)) * (self.one + self.weight)


def test_the_gain_of_a_norm_written_by_hand_folds_where_it_only_multiplies():
    new, changed, _ = folded(nn.Sequential(nn.Tanh(), HandNorm(), nn.Linear(4, 3)), X[:, :, 0, 0], gains=True)
    assert changed["1"].into == ("2",)
    assert (new[1].weight == 1).all()
    _, changed, left = folded(nn.Sequential(nn.Tanh(), HandNorm(1), nn.Linear(4, 3)), X[:, :, 0, 0], gains=True)
    assert not changed
    assert "was not seen to do" in left["1"]


def test_the_certificate_says_what_went_where_and_how_far_outputs_moved():
    model, x = models()["ResNet"]
    lively(model)
    parts = [x[:3], x[3:]]
    new, certificate = hs.fold(model, parts)
    assert certificate.samples == 8
    assert len(certificate.changed) == 11
    assert [name for name, _ in certificate.left] == ["stem.1"]
    steps = [
        (outputs(new, p) - outputs(model, p)).abs().max() / outputs(model, p).square().mean().sqrt() for p in parts
    ]
    assert certificate.drift == pytest.approx(float(max(steps)), rel=1e-4)
    assert 0 < certificate.drift < 1e-5
    norm = model.head[1]
    scale = (norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()).abs().max()
    change = certificate.changed[-1]
    assert (change.layer, change.kind, change.into) == ("head.1", "BatchNorm1d", ("head.0",))
    assert change.scale == pytest.approx(float(scale), rel=1e-6)
    steps = [(seen(new, p) - seen(model, p)).abs().max() / seen(model, p).square().mean().sqrt() for p in parts]
    assert change.drift == pytest.approx(float(max(steps)), rel=1e-4)
    assert "folded: 11 layers on 8 samples" in str(certificate)


def seen(model, x):
    """What comes out of `head.1`."""
    got = []
    model = copy.deepcopy(model)
    model.head[1].register_forward_hook(lambda m, args, y: got.append(y.clone()))
    outputs(model, x)
    return got[0].double()


def test_the_model_given_stays_as_it_is_unless_it_is_asked_for():
    model, x = models()["ResNet"]
    lively(model).train()
    model.head.eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    new, certificate = hs.fold(model, [x])
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert [m.training for m in model.modules()] == [m.training for m in new.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in (*model.modules(), *new.modules()))
    norm, weight = model.head[1], model.head[0].weight
    same, again = hs.fold(model, [x], inplace=True)
    assert same is model
    assert again == certificate
    assert model.head[1] is norm
    assert model.head[0].weight is weight
    assert all(torch.equal(a, b) for a, b in zip(new.state_dict().values(), model.state_dict().values(), strict=True))


def test_folding_twice_changes_nothing_and_some_layers_can_be_left():
    model, x = models()["ResNet"]
    new, _ = hs.fold(lively(model), [x])
    twice, certificate = hs.fold(new, [x])
    assert not certificate.changed
    assert certificate.drift == 0
    assert all(torch.equal(a, b) for a, b in zip(new.state_dict().values(), twice.state_dict().values(), strict=True))
    _, certificate = hs.fold(model, [x], layers=["head.*"])
    assert [change.layer for change in certificate.changed] == ["head.1"]
    with pytest.raises(ValueError, match="no layer of that name"):
        hs.fold(model, [x], layers="tail")
    with pytest.raises(TypeError, match="pass a list of batches"):
        hs.fold(model, x)


def test_weights_are_rounded_once_and_never_to_infinity():
    model = chain(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    for dtype in (torch.float32, torch.bfloat16):
        model = model.to(dtype)
        new, _ = hs.fold(model, [X.to(dtype)])
        norm = copy.deepcopy(model[1]).double()
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        bias = (model[0].bias.double() - norm.running_mean) * scale + norm.bias
        assert torch.equal(new[0].weight, (model[0].weight.double() * scale[:, None, None, None]).to(dtype))
        assert torch.equal(new[0].bias, bias.to(dtype))
    model = chain(nn.Linear(4, 4), nn.BatchNorm1d(4, eps=1e-12)).half()
    nn.init.constant_(model[1].running_var, 1e-7)
    nn.init.constant_(model[1].weight, 6e4)
    nn.init.zeros_(model[1].bias)
    nn.init.zeros_(model[1].running_mean)
    nn.init.zeros_(model[0].bias)
    _, certificate = hs.fold(model, [torch.full((2, 4), 1e-6).half()])
    assert "would not be finite" in dict(certificate.left)["1"]


def test_large_means_are_taken_away_in_double():
    model = chain(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4)).double()
    model[1].running_mean.fill_(1e6)
    _, changed, _ = folded(model, X[:, :, 0, 0] + 1e5)
    assert changed["1"].into == ("0",)


@pytest.mark.parametrize("trained_by", ["torch", "homeostat"])
def test_onnx_of_a_folded_model_has_no_norm_left_and_equals_it_in_onnxruntime(trained_by, tmp_path):
    import onnx

    model, x = models()["ResNet"]
    model = lively(model if trained_by == "torch" else hs.adopt(model)).eval()
    model.stem[1] = nn.Identity()
    new, _ = hs.fold(model, [x])
    path = str(tmp_path / "model.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(new, (x,), path, dynamo=True, verbose=False, external_data=False)
    assert not any("Norm" in node.op_type for node in onnx.load(path).graph.node)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    torch.testing.assert_close(got, outputs(new, x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got, outputs(model, x), rtol=1e-4, atol=1e-5)


def test_a_hugging_face_resnet_folds_whole():
    transformers = pytest.importorskip("transformers")
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2]}
    torch.manual_seed(0)
    model = lively(transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes))).eval()
    x = torch.randn(3, 3, 32, 32)
    new, certificate = hs.fold(model, [{"pixel_values": x}])
    assert not certificate.left
    assert not any("running_mean" in name for name in new.state_dict())
    before, after = outputs(model, x).logits.double(), outputs(new, x).logits.double()
    drift = float((after - before).abs().max() / before.square().mean().sqrt())
    assert certificate.drift == pytest.approx(drift, rel=1e-4)
    assert drift < 1e-5
    assert max(change.drift for change in certificate.changed) < 1e-5


def test_frozen_norms_that_hold_all_as_buffers_fold_too():
    pytest.importorskip("transformers")
    from transformers.models.detr.modeling_detr import DetrFrozenBatchNorm2d

    model = nn.Sequential(nn.Conv2d(4, 6, 3), DetrFrozenBatchNorm2d(6), nn.ReLU())
    new, changed, _ = folded(lively(model))
    assert type(new[1]) is nn.Identity
    assert changed["1"].kind == "DetrFrozenBatchNorm2d"


TORCHVISION = """torchvision torchvision.ops torchvision.ops.misc torchvision.transforms
torchvision.transforms.functional torchvision.models
torchvision.models.feature_extraction torchvision.datasets torchvision.datasets.folder""".split()


@pytest.fixture
def timm(monkeypatch):
    """timm, with an empty torchvision: the wheel of that wants another torch, and timm's models need none of it."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("pip install --no-deps timm")
    for name in [name for name in sys.modules if name.partition(".")[0] in ("timm", "torchvision")]:
        monkeypatch.delitem(sys.modules, name)
    for name in TORCHVISION:
        monkeypatch.setitem(sys.modules, name, MagicMock(__spec__=None, __path__=[]))
    sys.modules["torchvision.ops.misc"].FrozenBatchNorm2d = type("FrozenBatchNorm2d", (nn.Module,), {})
    yield importlib.import_module("timm")
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        del sys.modules[name]


def test_timms_networks_fold_and_keep_their_activations(timm):
    """Norm and activation in one layer, convolutions that pad as they run, depthwise ones, a norm that is a branch."""
    left = {}
    for name in ("test_resnet", "test_efficientnet", "tf_mobilenetv3_small_minimal_100", "repvgg_a0"):
        torch.manual_seed(0)
        model = lively(timm.create_model(name)).eval()
        x = torch.randn(2, 3, 32, 32)
        assert hs.fold(model, [x])[1].drift < 1e-5
        _, changed, left[name] = folded(model, x)
        assert len(changed) > 10
    assert {name.rpartition(".")[2] for name in left.pop("repvgg_a0")} == {"identity"}
    assert not any(left.values())
