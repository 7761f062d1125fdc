"""Named methods against the libraries that are known for them.

They are extras of the tests (`pip install homeostat[peers]`, and timm, which `make setup` installs by itself); without
one its tests say so and are skipped.
"""

import importlib
import importlib.util
import os
import sys

import pytest
import torch

import homeostat as hs
from homeostat import nn as H

os.environ.setdefault("KERAS_BACKEND", "torch")


def peer(name, how="pip install homeostat[peers]"):
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(missing, reason=f"{name} is not installed: {how}")


def assert_same_as_peer(ours, theirs, *inputs, names=None, **tolerance):
    """Outputs and the gradient of the first input; parameters are carried over by name."""
    tolerance = tolerance or {"rtol": 1e-4, "atol": 1e-5}
    own = dict(ours.named_parameters())
    with torch.no_grad():
        for key, value in theirs.named_parameters():
            if value.numel():
                value.add_(torch.randn_like(value) / 4)
                mine = own[(names or {}).get(key, key)]
                mine.copy_(value.reshape(mine.shape))
    x = inputs[0].clone().requires_grad_()
    z = inputs[0].clone().requires_grad_()
    got, want = ours(x, *inputs[1:]), theirs(z, *inputs[1:])
    torch.testing.assert_close(got, want, **tolerance)
    w = torch.linspace(-1, 1, got.numel()).view_as(got)
    (got * w).sum().backward()
    (want * w).sum().backward()
    torch.testing.assert_close(x.grad, z.grad, **tolerance)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


GRAPH = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 2, 2])


# ---------------------------------------------------------------- PyTorch Geometric


def nodes():
    return torch.randn(10, 6) * 2 + 1


@peer("torch_geometric")
@pytest.mark.parametrize(
    "name", ["GraphNorm", "InstanceNorm", "LayerNorm", "MeanSubtractionNorm", "PairNorm", "GraphSizeNorm"]
)
def test_norms_of_graphs_are_geometrics(name):
    from torch_geometric.nn import norm

    ours, theirs = {
        "GraphNorm": (H.GraphNorm(6), norm.GraphNorm(6)),
        "InstanceNorm": (H.GraphInstanceNorm(6, affine=True), norm.InstanceNorm(6, affine=True)),
        "LayerNorm": (H.GraphLayerNorm(6), norm.LayerNorm(6, mode="graph")),
        "MeanSubtractionNorm": (H.MeanSubtraction(6), norm.MeanSubtractionNorm()),
        "PairNorm": (H.PairNorm(6, 1.7), norm.PairNorm(1.7)),
        "GraphSizeNorm": (H.GraphSizeNorm(), norm.GraphSizeNorm()),
    }[name]
    if name == "LayerNorm":  # geometric adds eps to the deviation, not to the variance
        ours, theirs = H.GraphLayerNorm(6, eps=0.0), norm.LayerNorm(6, eps=0.0, mode="graph")
    assert_same_as_peer(ours, theirs, nodes(), GRAPH)


@peer("torch_geometric")
def test_message_norm_is_geometrics():
    from torch_geometric.nn import norm

    x, message = nodes(), torch.randn(10, 6)
    torch.testing.assert_close(H.MessageNorm(True)(x, message), norm.MessageNorm(True)(x, message))


@peer("torch_geometric")
def test_batch_norm_by_type_is_geometrics_with_its_memory():
    from torch_geometric.nn import norm

    kind = torch.tensor([0, 2, 1, 0, 2, 2, 1, 0, 0, 2])
    ours, theirs, x = H.HeteroNorm(6, 3), norm.HeteroBatchNorm(6, 3), nodes()
    torch.testing.assert_close(ours(x, kind=(kind, 3)), theirs(x, kind), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean, rtol=1e-4, atol=1e-5)
    # Its running variance is of the biased estimate; torch's batch norm, and ours, remember the unbiased one.
    n = torch.bincount(kind)[:, None]
    biased = (ours.running_var - 0.9) * (n - 1) / n + 0.9
    torch.testing.assert_close(biased, theirs.running_var, rtol=1e-4, atol=1e-5)


@peer("torch_geometric")
def test_differentiable_group_norm_is_geometrics():
    from torch_geometric.nn import norm

    ours, theirs, x = H.DiffGroupNorm(6, 3), norm.DiffGroupNorm(6, 3), nodes()
    with torch.no_grad():
        ours.assign.weight.copy_(theirs.lin.weight)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- diffusers, transformers


@peer("diffusers")
def test_adaptive_group_norm_is_that_of_diffusers():
    from diffusers.models.normalization import AdaGroupNorm

    assert_same_modulation(H.AdaGroupNorm(3, 6, 5), AdaGroupNorm(5, 6, 3), torch.randn(4, 6, 5, 3) + 2)


@peer("diffusers")
def test_adaptive_layer_norm_is_that_of_diffusers():
    from diffusers.models.normalization import AdaLayerNormContinuous

    theirs = AdaLayerNormContinuous(6, 5, elementwise_affine=False, eps=1e-6)
    assert_same_modulation(H.AdaLayerNorm(6, 5), theirs, torch.randn(4, 7, 6) + 2)


def assert_same_modulation(ours, theirs, x):
    cond = torch.randn(4, 5)
    with torch.no_grad():
        ours.modulation.weight.copy_(theirs.linear.weight)
        ours.modulation.bias.copy_(theirs.linear.bias)
    torch.testing.assert_close(ours(x, cond=cond), theirs(x, cond), rtol=1e-4, atol=1e-5)


@peer("diffusers")
def test_global_response_norm_is_that_of_diffusers():
    from diffusers.models.normalization import GlobalResponseNorm

    assert_same_as_peer(
        H.GRN(6), GlobalResponseNorm(6), torch.randn(4, 5, 3, 6), names={"gamma": "weight", "beta": "bias"}
    )


@peer("transformers")
@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_rms_norms_are_those_of_transformers(family):
    if family == "llama":
        from transformers.models.llama.modeling_llama import LlamaRMSNorm

        return assert_same_as_peer(H.RMSNorm(8, 1e-6), LlamaRMSNorm(8, 1e-6), torch.randn(4, 7, 8))
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

    return assert_same_as_peer(H.GemmaRMSNorm(8), GemmaRMSNorm(8), torch.randn(4, 7, 8))


# ---------------------------------------------------------------- Keras, Flax, e3nn


@peer("keras")
@pytest.mark.parametrize("clips", [(1.0, 0.0), (1.5, 0.3), (100.0, 100.0)])
def test_renorm_is_kerass(clips):
    import keras

    r_max, d_max = clips
    source = hs.Renorm(r_max=r_max, d_max=d_max)
    ours = hs.nn.BatchNorm1d(6, eps=1e-3, source=source)
    clipping = {"rmin": 1 / r_max, "rmax": r_max, "dmax": d_max}
    theirs = keras.layers.BatchNormalization(epsilon=1e-3, renorm=True, renorm_clipping=clipping)
    x = torch.randn(16, 6) * 2 + 1
    theirs.build(x.shape)
    with torch.no_grad():
        ours.running_mean.normal_()
        ours.running_var.uniform_(0.5, 2)
        theirs.renorm_mean.assign(ours.running_mean)
        theirs.renorm_stddev.assign((ours.running_var + 1e-3).sqrt())  # Keras remembers the deviation
    torch.testing.assert_close(ours(x), theirs(x, training=True), rtol=1e-4, atol=1e-4)


@peer("keras")
def test_group_norm_is_kerass():
    import keras

    theirs = keras.layers.GroupNormalization(3, epsilon=1e-5)
    x = torch.randn(4, 5, 3, 6) + 2
    want = theirs(x)
    got = H.GroupNorm(3, 6)(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@peer("flax")
def test_masked_batch_norm_is_flaxs():
    import jax
    import jax.numpy as jnp
    from flax import linen

    x = torch.randn(8, 6) * 2 + 1
    where = torch.rand(8, 6) > 0.3
    ours = hs.Norm("n c -> c", source=hs.Running(0.1), c=6)
    got = ours(x, where=where)
    theirs = linen.BatchNorm(use_running_average=False, momentum=0.9, use_scale=False, use_bias=False)
    z, mask = jnp.asarray(x.numpy()), jnp.asarray(where.numpy())
    start = theirs.init(jax.random.key(0), z)
    want, after = theirs.apply(start, z, mask=mask, mutable=["batch_stats"])
    torch.testing.assert_close(got, torch.tensor(want.tolist()), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        ours.running_mean, torch.tensor(after["batch_stats"]["mean"].tolist()), rtol=1e-4, atol=1e-4
    )


@peer("flax")
@pytest.mark.parametrize("axes", [(-1,), (1, 2), (1,)])
def test_a_norm_over_any_axes_is_flaxs(axes):
    import jax
    import jax.numpy as jnp
    from flax import linen

    x = torch.randn(4, 5, 6) + 3
    pattern = {(-1,): "n t c -> n t", (1, 2): "n t c -> n", (1,): "n t c -> n c"}[axes]
    theirs = linen.LayerNorm(epsilon=1e-5, reduction_axes=axes, use_scale=False, use_bias=False)
    z = jnp.asarray(x.numpy())
    want = theirs.apply(theirs.init(jax.random.key(0), z), z)
    torch.testing.assert_close(hs.normalize(x, pattern), torch.tensor(want.tolist()), rtol=1e-4, atol=1e-4)


@peer("e3nn")
def test_orbit_norm_of_vectors_is_e3nns():
    from e3nn.nn import BatchNorm

    ours, theirs = H.OrbitNorm(4, 3, vectors=True), BatchNorm("4x1o", eps=1e-5)
    assert_same_as_peer(ours, theirs, torch.randn(16, 12) + 1)


@peer("e3nn")
def test_orbit_norm_of_scalars_is_e3nns():
    from e3nn.nn import BatchNorm

    assert_same_as_peer(H.OrbitNorm(4, 1), BatchNorm("4x0e", eps=1e-5), torch.randn(16, 4) * 2 + 1)


# ---------------------------------------------------------------- timm


uses_timm = peer("timm", "pip install --no-deps timm")


@pytest.fixture
def timm(monkeypatch):
    """A layer of timm by file and name.

    timm's packages are opened, not run: their __init__ wants torchvision, whose wheel wants another torch; the
    files of its layers do not.
    """
    for package in ("timm", "timm.layers"):
        opened = importlib.util.module_from_spec(importlib.util.find_spec(package))
        monkeypatch.setitem(sys.modules, package, opened)
    return lambda file, name: getattr(importlib.import_module(f"timm.layers.{file}"), name)


def images(channels=6):
    return torch.randn(4, channels, 5, 3) * 2 + 1


@uses_timm
def test_filter_response_norm_and_its_threshold_are_timms(timm):
    ours, theirs = torch.nn.Sequential(H.FRN(6), H.TLU(6)), timm("filter_response_norm", "FilterResponseNormTlu2d")(6)
    assert theirs.eps == 1e-5  # timm's default; the paper's, and ours, is 1e-6
    theirs.eps = 1e-6
    assert_same_as_peer(ours, theirs, images(), names={"weight": "0.weight", "bias": "0.bias", "tau": "1.threshold"})


@uses_timm
def test_filter_response_norm_alone_is_timms(timm):
    theirs = timm("filter_response_norm", "FilterResponseNormAct2d")(6, apply_act=False, eps=1e-6)
    assert_same_as_peer(H.FRN(6), theirs, images())


@uses_timm
@pytest.mark.parametrize("name", ["EvoNorm2dS0", "EvoNorm2dS0a"])
def test_evonorm_s0_is_timms(timm, name):
    theirs = timm("evo_norm", name)(6, groups=3, eps=1e-5)  # S0a differs in its default eps, 1e-3, and in nothing else
    assert_same_as_peer(H.EvoNormS0(3, 6), theirs, images())


@uses_timm
def test_evonorm_b0_is_timms_with_its_memory(timm):
    theirs = timm("evo_norm", "EvoNorm2dB0")(6)
    ours = H.EvoNormB0(6, eps=1e-3)
    for _ in range(2):
        assert_same_as_peer(ours, theirs, images())
    torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=1e-4, atol=1e-5)
    assert_same_as_peer(ours.eval(), theirs.eval(), images())


@uses_timm
@pytest.mark.parametrize("channels_last", [True, False])
def test_global_response_norm_is_timms(timm, channels_last):
    theirs = timm("grn", "GlobalResponseNorm")(6, channels_last=channels_last)
    x = images().permute(0, 2, 3, 1) if channels_last else images()
    ours = H.GRN(6) if channels_last else Moved(H.GRN(6))  # ours is [n, ..., c], as in the paper
    assert_same_as_peer(ours, theirs, x, names=None if channels_last else {"weight": "0.weight", "bias": "0.bias"})


class Moved(torch.nn.Sequential):
    """A layer of [n, h, w, c] on [n, c, h, w]."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@uses_timm
@pytest.mark.parametrize("name", ["LayerNorm2d", "LayerNorm2dFp32", "LayerNormExp2d", "RmsNorm2d", "RmsNorm2dFp32"])
def test_norms_over_the_channels_of_a_pixel_are_timms(timm, name):
    rms = name.startswith("Rms")
    ours = hs.Norm("n c h w -> n h w", gain=hs.Learned("c", bias=not rms), eps=1e-6, center=not rms, c=6)
    assert_same_as_peer(ours, timm("norm", name)(6, eps=1e-6), images())


@uses_timm
@pytest.mark.parametrize("name", ["RmsNorm", "LayerNorm", "GroupNorm1", "GroupNorm"])
def test_layer_rms_and_group_norms_are_timms(timm, name):
    ours, theirs, x = {
        "RmsNorm": lambda make: (H.RMSNorm(6, 1e-6), make(6), torch.randn(4, 7, 6) + 1),
        "LayerNorm": lambda make: (H.LayerNorm(6, 1e-6), make(6), torch.randn(4, 7, 6) + 1),
        "GroupNorm1": lambda make: (H.GroupNorm(1, 6), make(6), images()),
        "GroupNorm": lambda make: (H.GroupNorm(3, 6), make(6, 3), images()),
    }[name](timm("norm", name))
    assert_same_as_peer(ours, theirs, x)


@uses_timm
def test_a_convolution_of_a_standardized_weight_is_timms(timm):
    ours = H.standardize_weight(torch.nn.Conv2d(6, 5, 3, bias=False), eps=1e-6)
    theirs = timm("std_conv", "StdConv2d")(6, 5, 3, padding=0)
    assert_same_as_peer(ours, theirs, images(), names={"weight": "parametrizations.weight.original"})


@uses_timm
def test_scaled_standardization_is_the_frame_of_weight_standardization_with_a_gain(timm):
    fan_in = 6 * 3 * 3
    ours = torch.nn.Conv2d(6, 5, 3)
    norm = hs.Norm("o ... -> o", gain=hs.Learned("o", bias=False), eps=1e-6, o=5)
    torch.nn.utils.parametrize.register_parametrization(ours, "weight", norm)
    theirs = timm("std_conv", "ScaledStdConv2d")(6, 5, 3, padding=0)
    names = {"weight": "parametrizations.weight.original", "gain": "parametrizations.weight.0.weight"}
    theirs.scale = 1.0  # timm multiplies its gain by gamma / sqrt(fan in) at every call; here the gain holds it
    assert theirs.weight[0].numel() == fan_in
    assert_same_as_peer(ours, theirs, images(), names=names)


@uses_timm
def test_layer_scale_is_timms(timm):
    theirs = timm("layer_scale", "LayerScale")(6)
    assert_same_as_peer(H.LayerScale(6), theirs, torch.randn(4, 7, 6), names={"gamma": "weight"})
