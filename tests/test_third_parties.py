"""Models of other libraries, with random weights: the norms in them, another norm in their place, and back.

They are extras of the tests (`pip install homeostat[peers]`, and timm, which `make setup` installs by itself); without
one its tests say so and are skipped. The manifests were written by hand from the models' code.
"""

import copy
import importlib.util
import os
import sys
import types
from importlib.machinery import ModuleSpec

import pytest
import torch
from torch import nn

import homeostat as hs

os.environ.setdefault("HF_HUB_OFFLINE", "1")

BATCH, LAYER, RMS = (
    ("n c ... -> c", True, "running"),
    ("... d -> ...", True, "sample"),
    ("... d -> ...", False, "sample"),
)
PIXEL = ("n c ... -> n ...", True, "sample")


def peer(name, how="pip install homeostat[peers]"):
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(missing, reason=f"{name} is not installed: {how}")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def words():
    return [torch.randint(0, 50, (2, 7)) for _ in range(2)]


def pictures(channels=3, size=32):
    return [torch.randn(4, channels, size, size) * (1 + i) + 0.3 for i in range(2)]


def moved(model):
    """Gains and memory away from where they begin."""
    with torch.no_grad():
        for name, t in model.state_dict().items():
            if t.is_floating_point() and t.dim() == 1 and "var" not in name:
                t.add_(torch.randn_like(t) / 4)
            elif "running_var" in name:
                t.mul_(torch.rand_like(t) + 0.5)
    return model.eval()


def transformer(kind, **more):
    transformers = pytest.importorskip("transformers", reason="pip install homeostat[peers]")
    small = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2} | more
    config = getattr(transformers, f"{kind}Config")(**small, intermediate_size=32, use_cache=False)
    return moved(getattr(transformers, f"{kind}Model")(config))


def decoder(norms, kind, **more):
    each = [f"layers.{i}.{name}" for i in range(2) for name in norms]
    return transformer(kind, num_key_value_heads=1, **more), words(), dict.fromkeys([*each, "norm"], RMS)


def resnet():
    transformers = pytest.importorskip("transformers", reason="pip install homeostat[peers]")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    names = ["embedder.embedder", "encoder.stages.1.layers.0.shortcut"]
    names += [f"encoder.stages.{s}.layers.0.layer.{i}" for s in (0, 1) for i in (0, 1)]
    return (
        moved(transformers.ResNetModel(config)),
        pictures(),
        {f"{name}.normalization": BATCH for name in names},
    )


def bert():
    each = [f"encoder.layer.{i}.{part}output.LayerNorm" for i in range(2) for part in ("attention.", "")]
    return transformer("Bert"), words(), dict.fromkeys(["embeddings.LayerNorm", *each], LAYER)


def llama():
    return decoder(["input_layernorm", "post_attention_layernorm"], "Llama")


def mixtral():
    return decoder(["input_layernorm", "post_attention_layernorm"], "Mixtral", num_local_experts=4)


def qwen():
    norms = ["self_attn.q_norm", "self_attn.k_norm", "input_layernorm", "post_attention_layernorm"]
    return decoder(norms, "Qwen3", head_dim=8)


def unet(norm, frame):
    nets = pytest.importorskip("monai.networks.nets", reason="pip install homeostat[peers]")
    model = nets.UNet(2, 1, 2, channels=(4, 8, 16), strides=(2, 2), num_res_units=1, norm=norm)
    inner = "model.1.submodule."
    names = ["model.0.conv.unit0", f"{inner}0.conv.unit0", f"{inner}1.submodule.conv.unit0"]
    names += [f"{inner}2.0", f"{inner}2.1.conv.unit0", "model.2.0"]
    return moved(model), pictures(1, 16), {f"{name}.adn.N": frame for name in names}


def unet_of_batches():
    return unet("BATCH", BATCH)


def unet_of_groups():
    return unet(("GROUP", {"num_groups": 2}), ("n (g c) ... -> n g", True, "sample"))


@pytest.fixture
def timm(monkeypatch):
    """timm without torchvision, whose wheel wants another torch: a stand-in for what its data loading imports."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed: pip install --no-deps timm")
    if importlib.util.find_spec("torchvision") is not None:
        return __import__("timm")

    class Named(type):
        def __getattr__(cls, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return name

    class Empty(types.ModuleType):
        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return Named(name, (), {})

    class Finder:
        def find_spec(self, name, path=None, target=None):
            return ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "torchvision" else None

        def create_module(self, spec):
            return Empty(spec.name)

        def exec_module(self, module):
            module.__path__ = []

    before = set(sys.modules)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
    yield __import__("timm")
    for name in [name for name in sys.modules if name not in before and name.split(".")[0] in ("torchvision", "timm")]:
        del sys.modules[name]


def convnext(timm):
    model = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=5)
    names = {"stem.1": PIXEL, "head.norm": PIXEL}
    names |= {f"stages.{i}.blocks.0.norm": PIXEL for i in range(4)} | {
        f"stages.{i}.downsample.0": PIXEL for i in (1, 2, 3)
    }
    return moved(model), pictures(), names


def efficientnet(timm):
    """And which of its norms have no activation fused into them: the last of every block but the first."""
    model = timm.create_model("test_efficientnet", num_classes=5)
    inner = {"0.0": 1, "1.0": 2, "2.0": 2, "3.0": 3, "4.0": 3}
    names = ["bn1", "bn2", *(f"blocks.{block}.bn{i + 1}" for block, n in inner.items() for i in range(n))]
    plain = {f"blocks.{block}.bn{n}" for block, n in inner.items() if n > 1}
    return moved(model), pictures(), dict.fromkeys(names, BATCH), plain


def assert_manifest(model, batches, manifest):
    before = copy.deepcopy(model.state_dict())
    found = hs.recognise(model, batches)
    assert {one.name: (str(one.frame), one.center == one.frame, one.source) for one in found} == manifest
    assert found.left == ()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    return found


def tensors(model, batch):
    """What comes out, by name; in evaluation."""
    with torch.no_grad():
        out = copy.deepcopy(model).eval()(batch)
    out = {"": out} if isinstance(out, torch.Tensor) else dict(out)
    return {name: t.double() for name, t in out.items() if isinstance(t, torch.Tensor) and t.is_floating_point()}


def assert_replaced_and_restored(model, batches, what, kind, count):
    new, said = hs.replace(model, what, batches)
    assert said.left == ()
    assert sum(type(m) is kind for m in new.modules()) == len(said.changed) == count
    moves = [
        float((now[name] - was).abs().max() / was.square().mean().sqrt())
        for batch in batches
        for now in [tensors(new, batch)]
        for name, was in tensors(model, batch).items()
    ]
    assert said.drift == pytest.approx(max(moves), rel=1e-5)
    assert all(change.after <= change.before + 1e-6 for change in said.changed)
    back = said.undo(new)
    one, two = model.state_dict(), back.state_dict()
    assert list(one) == list(two)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert [type(m) for m in model.modules()] == [type(m) for m in back.modules()]
    return said


FAMILIES = {
    "ResNet": (resnet, {"BatchNorm2d": hs.nn.GroupNorm}, hs.nn.GroupNorm),
    "BERT": (bert, {"LayerNorm": hs.nn.RMSNorm}, hs.nn.RMSNorm),
    "Llama": (llama, {"*RMSNorm": hs.nn.LayerNorm}, hs.nn.LayerNorm),
    "Mixtral": (mixtral, {"MixtralRMSNorm": hs.nn.RMSNorm}, hs.nn.RMSNorm),
    "Qwen3": (qwen, {"*norm*": hs.nn.RMSNorm}, hs.nn.RMSNorm),
    "MONAI UNet, batch": (unet_of_batches, {"BatchNorm*": nn.GroupNorm}, nn.GroupNorm),
    "MONAI UNet, group": (unet_of_groups, {"GroupNorm": hs.nn.BatchNorm2d}, hs.nn.BatchNorm2d),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_are_found_as_written_down_replaced_and_restored(family):
    make, what, kind = FAMILIES[family]
    model, batches, manifest = make()
    assert_manifest(model, batches, manifest)
    said = assert_replaced_and_restored(model, batches, what, kind, len(manifest))
    if family in ("Mixtral", "Qwen3"):  # the same norm, written otherwise
        assert said.drift < 1e-4


# Which norms fold, gains included: those of the residual stream where linear layers alone read them.
FOLDED = {"ResNet": 6, "BERT": 0, "Llama": 4, "Mixtral": 2, "Qwen3": 4, "MONAI UNet, batch": 6}


@pytest.mark.parametrize("family", FOLDED)
def test_folding_moves_no_output_by_more_than_rounding(family):
    model, batches, manifest = FAMILIES[family][0]()
    new, said = hs.fold(model, batches, gains=True)
    moves = [
        float((now[name] - was).abs().max() / was.square().mean().sqrt())
        for batch in batches
        for now in [tensors(new, batch)]
        for name, was in tensors(model, batch).items()
    ]
    assert said.drift == pytest.approx(max(moves), rel=1e-5)
    assert said.drift <= 1e-5
    assert len(said.changed) == FOLDED[family]
    assert {*(change.layer for change in said.changed), *dict(said.left)} == set(manifest)


def test_a_timm_convnet_of_layer_norms_over_channels(timm):
    model, batches, manifest = convnext(timm)
    assert_manifest(model, batches, manifest)

    def pono(old):
        return hs.Norm("n c ... -> n ...", gain=hs.Learned("c"), eps=old.eps, c=old.normalized_shape[0])

    said = assert_replaced_and_restored(model, batches, {"LayerNorm2d": pono}, hs.Norm, len(manifest))
    assert said.drift < 1e-4


def test_a_timm_convnet_of_batch_norms_with_activations_fused(timm):
    model, batches, manifest, plain = efficientnet(timm)
    found = assert_manifest(model, batches, manifest)
    assert {one.kind for one in found} == {"BatchNormAct2d"}
    assert {one.name for one in found if not one.fused} == plain
    said = assert_replaced_and_restored(model, batches, {"*": hs.nn.GroupNorm}, hs.nn.GroupNorm, len(manifest))
    assert {change.layer for change in said.changed if change.into == "GroupNorm"} == plain
    assert {change.into for change in said.changed if change.layer not in plain} == {"GroupNorm, then its drop and act"}


def test_a_timm_net_without_norms_has_none(timm):
    model = timm.create_model("test_nfnet", num_classes=5)
    assert len(hs.recognise(model, pictures())) == 0


@peer("torch_geometric")
def test_graph_norms_are_found_with_their_graphs():
    from torch_geometric.nn import norm as theirs

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.graph, self.instance = theirs.GraphNorm(6), theirs.InstanceNorm(6)
            self.layer, self.node = theirs.LayerNorm(6), theirs.LayerNorm(6, mode="node")
            self.pair, self.size, self.mean = theirs.PairNorm(), theirs.GraphSizeNorm(), theirs.MeanSubtractionNorm()

        def forward(self, x, batch):
            for norm in self.children():
                x = norm(x, batch)
            return x

    graphs = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 2, 2])
    found = hs.recognise(Net(), [(torch.randn(10, 6), graphs)], forward=lambda m, b: m(*b))
    assert {one.name: (str(one.frame), str(one.center), one.gain) for one in found} == {
        "graph": ("n d -> batch[n] d", "n d -> batch[n] d", "d"),
        "instance": ("n d -> batch[n] d", "n d -> batch[n] d", None),
        "layer": ("n d -> batch[n]", "n d -> batch[n]", "d"),
        "node": ("... d -> ...", "... d -> ...", "d"),
        "pair": ("n d -> batch[n]", "n d -> batch[n] d", None),
    }
