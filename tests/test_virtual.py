"""A reference batch: given where the layer is made, or recorded; its moments are kept, and not the batch."""

import copy
import gc
import pickle
import weakref

import pytest
import torch

import homeostat as hs


def data(n=7, shift=0.0):
    return torch.randn(n, 6, 5, 3, generator=torch.Generator().manual_seed(n)) * 2 + shift


def moments(reference):
    return hs.measure(reference, "n c h w -> c")


def recorded(reference, make=lambda: hs.nn.BatchNorm2d(6, source=hs.Virtual())):
    layer = make()
    with hs.recording():
        layer(reference)
    return layer


MAKE = {
    "BatchNorm2d": lambda source, **kind: hs.nn.BatchNorm2d(6, source=source, **kind),
    "Norm": lambda source, **kind: hs.Norm("n c h w -> c", source=source, gain=hs.Learned("c"), c=6, **kind),
}
every_layer = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


@every_layer
@pytest.mark.parametrize("give", [lambda x: x, moments], ids=["tensor", "Moments"])
def test_a_sample_is_normalized_beside_the_reference_that_the_layer_was_made_with(make, give):
    reference, x = data(11, 3.0).double(), data().double()
    layer = make(hs.Virtual(give(reference)), dtype=torch.float64)
    for training in (True, False):
        got = layer.train(training)(x)
        for y, sample in zip(got, x, strict=True):
            both = torch.cat([reference, sample[None]])
            var, mean = torch.var_mean(both, (0, 2, 3), correction=0, keepdim=True)
            torch.testing.assert_close(y, ((sample - mean) / (var + 1e-5).sqrt())[0], rtol=1e-9, atol=1e-9)


@every_layer
def test_it_is_the_reference_that_a_recording_leaves(make):
    given, want = make(hs.Virtual(data(11))), recorded(data(11), lambda: make(hs.Virtual()))
    assert given.source == want.source == hs.Virtual()
    for name in hs.Virtual.names:
        torch.testing.assert_close(getattr(given, name), getattr(want, name))
    fresh = make(hs.Virtual())
    fresh.load_state_dict(given.state_dict(), strict=True)
    torch.testing.assert_close(fresh(data()), given(data()), rtol=0, atol=0)


def test_without_a_centre_the_reference_is_measured_without_one():
    reference, x = data(11, 3.0).double(), data().double()
    source = hs.Virtual(reference)
    layer = hs.Norm("n c h w -> c", source=source, center=False, c=6, dtype=torch.float64)
    squares = torch.cat([reference, x[:1]]).square().mean((0, 2, 3), keepdim=True)
    torch.testing.assert_close(layer(x)[:1], x[:1] / (squares + 1e-5).sqrt(), rtol=1e-9, atol=1e-9)


@every_layer
def test_the_batch_is_not_kept(make):
    reference = data(11)
    gone, source = weakref.ref(reference), hs.Virtual(reference)
    layers = make(source), make(hs.Frozen(source))
    assert [layer.source for layer in layers] == [hs.Virtual(), hs.Frozen(hs.Virtual())]
    assert layers[0].source.reference is layers[1].source.inner.reference is None
    copies = [copy.deepcopy(layer) for layer in layers] + [pickle.loads(pickle.dumps(layer)) for layer in layers]
    del reference, source
    gc.collect()
    assert gone() is None
    for layer in copies:
        torch.testing.assert_close(layer(data()), layers[0](data()), rtol=0, atol=0)


def test_a_source_with_a_reference_is_a_short_value():
    with_one, without = hs.Virtual(data(11)), hs.Virtual()
    assert with_one == without
    assert hash(with_one) == hash(without)
    assert repr(with_one) == repr(without) == "Virtual()"
    layers = [hs.nn.BatchNorm2d(6, source=copy.deepcopy(with_one)) for _ in range(2)]  # one source, several layers
    assert torch.equal(layers[0].reference_mean, layers[1].reference_mean)


def test_a_reference_follows_the_layers_dtype_and_is_counted_in_whole_elements():
    layer = hs.nn.BatchNorm2d(6, source=hs.Virtual(data(11).double().requires_grad_()), dtype=torch.bfloat16)
    assert layer.reference_mean.dtype is torch.bfloat16
    assert not layer.reference_mean.requires_grad
    assert layer.reference_count.tolist() == [11 * 15] * 6


def test_a_lazy_layer_takes_its_reference_in_with_its_first_input():
    layer = hs.nn.LazyBatchNorm2d(source=hs.Virtual(data(11)))
    torch.testing.assert_close(layer(data()), hs.nn.BatchNorm2d(6, source=hs.Virtual(data(11)))(data()))
    assert layer.source.reference is None


def test_on_the_meta_device_there_is_room_for_a_reference_that_a_checkpoint_fills():
    layer = hs.nn.BatchNorm2d(6, source=hs.Virtual(data(11)), device="meta")
    assert layer.reference_mean.is_meta
    want = hs.nn.BatchNorm2d(6, source=hs.Virtual(data(11)))
    layer.to_empty(device="cpu").load_state_dict(want.state_dict(), strict=True)
    torch.testing.assert_close(layer(data()), want(data()), rtol=0, atol=0)


def test_a_reset_forgets_a_reference_and_another_can_be_recorded():
    layer = hs.nn.BatchNorm2d(6, source=hs.Virtual(data(11)))
    layer.reset_running_stats()
    assert not layer.reference_count.any()
    with hs.recording():
        layer(data(9))
    torch.testing.assert_close(layer(data()), recorded(data(9))(data()))


WRONG = {
    "other channels": (torch.zeros(4, 5, 2, 2), RuntimeError, "c was given as 6, but this tensor has 5"),
    "another rank": (torch.zeros(6, 5, 3), ValueError, "expected 4D input"),
    "NaN": (data() * float("nan"), ValueError, "not finite"),
    "infinity": (data().index_fill(1, torch.tensor([2]), torch.inf), ValueError, "not finite"),
    "too large for the layer": (data().double() * 1e300, ValueError, "not finite in torch.float32"),
    "nobody": (data()[:0], ValueError, "empty"),
    "whole numbers": (torch.ones(4, 6, 2, 2, dtype=torch.int64), TypeError, "must be floating"),
    "text": ("imagenet", TypeError, "a tensor or Moments; this is str"),
    "moments of others": (hs.measure(data(), "n c h w -> n"), RuntimeError, r"\(7,\)"),
    "moments that are not finite": (moments(data() * float("nan")), ValueError, "not finite"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_reference_of_this_layer_is_refused_when_it_is_made(name):
    reference, error, said = WRONG[name]
    with pytest.raises(error, match=said):
        hs.nn.BatchNorm2d(6, source=hs.Virtual(reference))


def test_a_layer_that_has_labels_or_keeps_samples_apart_says_what_it_takes():
    with pytest.raises(hs.FrameError, match="give the reference as Moments"):
        hs.Norm("n c h w -> kind[n] c", hs.Virtual(data()), c=6, kind=2)
    m = hs.measure(data(), "n c h w -> kind[n] c", kind=(torch.arange(7) % 2, 2))
    labelled = hs.Norm("n c h w -> kind[n] c", hs.Virtual(m), c=6, kind=2)
    torch.testing.assert_close(labelled.reference_mean.double(), m.mean, rtol=1e-6, atol=1e-6)
    with pytest.raises(hs.FrameError, match="does not pool over that"):
        hs.nn.InstanceNorm2d(6, source=hs.Virtual(data()))


@every_layer
def test_a_reference_that_comes_too_late_is_refused_and_not_dropped(make):
    layer = make(hs.Virtual())
    layer.source = hs.Virtual(data(11))
    with pytest.raises(TypeError, match="when it is made"):
        layer(data())
