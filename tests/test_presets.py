"""Every preset is its torch.nn class with two more keywords, source= and gain=: signature, repr, errors, attributes."""

import copy
import inspect
import warnings

import pytest
import torch

import homeostat as hs
from homeostat.frame import ShapeError

NAMES = tuple(name for name in hs.nn.__all__ if hasattr(torch.nn, name))
LAZY = tuple(name for name in NAMES if name.startswith("Lazy"))
EAGER = tuple(name for name in NAMES if name not in LAZY)
MADE = {  # arguments and an input that fits
    "BatchNorm1d": ((4,), (5, 4)),
    "BatchNorm2d": ((4,), (5, 4, 3, 2)),
    "BatchNorm3d": ((4,), (5, 4, 3, 2, 2)),
    "InstanceNorm1d": ((4,), (5, 4, 3)),
    "InstanceNorm2d": ((4,), (5, 4, 3, 2)),
    "InstanceNorm3d": ((4,), (5, 4, 3, 2, 2)),
    "GroupNorm": ((2, 4), (5, 4, 3)),
    "LayerNorm": ((4,), (5, 4)),
    "RMSNorm": ((4,), (5, 4)),
}
MADE |= {f"Lazy{name}": ((), shape) for name, (_args, shape) in MADE.items() if f"Lazy{name}" in NAMES}
REMEMBERING = tuple(name for name in MADE if "Batch" in name or "Instance" in name)
EAGER_REMEMBERING = tuple(name for name in REMEMBERING if name not in LAZY)
WITHIN_A_SAMPLE = ("LayerNorm", "RMSNorm", "GroupNorm")

every_preset = pytest.mark.parametrize("name", NAMES)
every_lazy = pytest.mark.parametrize("name", LAZY)
remembering = pytest.mark.parametrize("name", EAGER_REMEMBERING)


def ours(name, **kwargs):
    return getattr(hs.nn, name)(*MADE[name][0], **kwargs)


def torchs(name, **kwargs):
    return getattr(torch.nn, name)(*MADE[name][0], **kwargs)


def numbers(name, seed=0, **kind):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(MADE[name][1], generator=generator).to(**kind) + 3


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# ---- what it is ----


@every_preset
def test_the_signature_is_torchs_and_a_keyword_only_source_and_gain(name):
    *own, source, gain = inspect.signature(getattr(hs.nn, name)).parameters.values()
    assert own == list(inspect.signature(getattr(torch.nn, name)).parameters.values())
    for more, said in ((source, "source"), (gain, "gain")):
        assert (more.name, more.kind, more.default) == (said, inspect.Parameter.KEYWORD_ONLY, None)


@every_preset
def test_forward_names_its_argument_as_torch_does(name):
    theirs = list(inspect.signature(getattr(torch.nn, name).forward).parameters)
    ours_ = list(inspect.signature(getattr(hs.nn, name).forward).parameters)
    assert ours_ in (theirs, [*theirs, "given"])  # what its source asks for, by keyword


@every_preset
def test_a_preset_is_an_instance_of_its_torch_class(name):
    assert isinstance(ours(name), getattr(torch.nn, name))


@every_preset
def test_parameters_buffers_attributes_and_repr_begin_as_torchs(name):
    mine, theirs = ours(name), torchs(name)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    if name not in LAZY:
        for key, value in theirs.state_dict().items():
            assert torch.equal(mine.state_dict()[key], value)
    for key, value in vars(theirs).items():
        assert key.startswith("_") or getattr(mine, key) == value
    assert repr(mine) == repr(theirs)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("BatchNorm2d", {"momentum": None, "eps": 1e-3}),
        ("BatchNorm2d", {"affine": False, "track_running_stats": False}),
        ("BatchNorm1d", {"bias": False}),
        ("InstanceNorm2d", {"affine": True, "track_running_stats": True}),
        ("GroupNorm", {"affine": False}),
        ("GroupNorm", {"bias": False}),
        ("LayerNorm", {"elementwise_affine": False}),
        ("LayerNorm", {"bias": False, "eps": 1e-6}),
        ("RMSNorm", {"eps": 1e-6, "elementwise_affine": False}),
        ("LazyBatchNorm2d", {"affine": False}),
    ],
)
def test_extra_repr_and_keys_follow_the_arguments_as_torchs_do(name, kwargs):
    mine, theirs = ours(name, **kwargs), torchs(name, **kwargs)
    assert mine.extra_repr() == theirs.extra_repr()
    assert list(mine.state_dict()) == list(theirs.state_dict())


def test_a_given_source_is_shown_after_torchs_repr():
    assert ours("LayerNorm", source=hs.Batch()).extra_repr().endswith("bias=True, source=Batch()")


@pytest.mark.parametrize("shape", [4, (3, 4), [3, 4], torch.Size([3, 4])])
def test_a_normalized_shape_is_a_number_or_any_sequence(shape):
    x = torch.randn(5, 3, 4)
    assert_same(hs.nn.LayerNorm(shape)(x), torch.nn.LayerNorm(shape)(x))
    assert_same(hs.nn.RMSNorm(shape)(x), torch.nn.RMSNorm(shape)(x))


@every_preset
def test_a_deep_copy_is_equal_and_apart(name):
    layer = ours(name)
    layer(numbers(name))
    twin = copy.deepcopy(layer)
    assert_same(twin.state_dict(), layer.state_dict())
    before = copy.deepcopy(layer.state_dict())
    for value in twin.state_dict().values():
        value.add_(1)
    assert_same(layer.state_dict(), before)


# ---- device and dtype ----


@every_preset
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_reaches_parameters_and_memory_but_no_counter(name, dtype):
    mine, theirs = ours(name, dtype=dtype), torchs(name, dtype=dtype)
    x = numbers(name, dtype=dtype)
    mine(x), theirs(x)
    assert {k: v.dtype for k, v in mine.state_dict().items()} == {k: v.dtype for k, v in theirs.state_dict().items()}


@pytest.mark.parametrize("affine", [True, False])
@remembering
def test_dtype_and_device_reach_the_memory_of_a_given_source_with_and_without_a_gain(name, affine):
    layer = ours(name, affine=affine, device="meta", dtype=torch.float64, source=hs.Running())
    assert (layer.running_var.device.type, layer.running_var.dtype) == ("meta", torch.float64)
    assert layer.num_batches_tracked.device.type == layer.num_batches_skipped.device.type == "meta"


@pytest.mark.parametrize("name", EAGER)
def test_on_the_meta_device_it_computes_shapes(name):
    layer = ours(name, device="meta")
    assert {t.device.type for t in (*layer.parameters(), *layer.buffers())} <= {"meta"}
    assert layer(numbers(name, device="meta")).shape == MADE[name][1]


@pytest.mark.parametrize("name", EAGER)
def test_moved_from_meta_to_memory_and_reset_it_is_new(name):
    layer = ours(name, device="meta").to_empty(device="cpu")
    layer.reset_parameters()
    x = numbers(name)
    assert_same(layer(x), torchs(name)(x))
    assert_same(
        layer.state_dict(), ours(name).state_dict() if name in WITHIN_A_SAMPLE else stepped(name, x).state_dict()
    )
    if name in EAGER_REMEMBERING and layer.running_mean is not None:
        assert layer.num_batches_skipped == 0


def stepped(name, x):
    layer = ours(name)
    layer(x)
    return layer


@every_preset
def test_to_half_and_back_moves_what_torch_moves(name):
    mine, theirs = ours(name), torchs(name)
    x = numbers(name)
    mine(x), theirs(x)
    mine.to(torch.bfloat16), theirs.to(torch.bfloat16)
    assert {k: v.dtype for k, v in mine.state_dict().items()} == {k: v.dtype for k, v in theirs.state_dict().items()}
    assert all(b.dtype == torch.int64 for name, b in mine.named_buffers() if name.startswith("num_"))


# ---- lazy ----


@every_lazy
def test_a_lazy_preset_becomes_its_eager_class_at_the_first_input(name):
    lazy = ours(name)
    kwargs = {"affine": lazy.affine, "track_running_stats": lazy.track_running_stats}  # torch's defaults differ here
    eager = getattr(hs.nn, name.removeprefix("Lazy"))(4, **kwargs)
    x = numbers(name)
    assert_same(lazy(x), eager(x))
    assert type(lazy) is type(eager)
    assert repr(lazy) == repr(eager)
    assert [n for n, _ in lazy.named_buffers()] == [n for n, _ in eager.named_buffers()]
    assert_same(lazy.state_dict(), eager.state_dict())


@every_lazy
@pytest.mark.parametrize("source", [hs.Running(0.3), hs.Running(None), hs.Batch(), hs.Frozen()], ids=repr)
@pytest.mark.parametrize("affine", [True, False])
def test_a_lazy_preset_takes_a_source_as_the_eager_one_does(name, source, affine):
    lazy = ours(name, source=source, affine=affine)
    eager = getattr(hs.nn, name.removeprefix("Lazy"))(4, source=source, affine=affine)
    x = numbers(name)
    assert_same(lazy(x), eager(x))
    assert_same(lazy.state_dict(), eager.state_dict())
    assert repr(lazy) == repr(eager)


@every_lazy
def test_a_lazy_preset_learns_its_size_from_a_state_dict_of_torchs(name):
    theirs = getattr(torch.nn, name.removeprefix("Lazy"))(4, affine=True, track_running_stats=True)
    with torch.no_grad():
        theirs.weight.uniform_(1, 2), theirs.running_mean.normal_()
    lazy = ours(name, affine=True, track_running_stats=True)
    lazy.load_state_dict(theirs.state_dict())
    assert torch.equal(lazy.running_mean, theirs.running_mean)
    x = numbers(name)
    assert_same(lazy(x), theirs(x))
    assert type(lazy) is getattr(hs.nn, name.removeprefix("Lazy"))
    assert lazy.num_features == 4
    assert_same(lazy.running_mean, theirs.running_mean)


@every_lazy
def test_an_untouched_lazy_preset_hands_its_state_dict_to_another(name):
    for other in (ours(name), torchs(name)):
        taken = ours(name).load_state_dict(other.state_dict())
        assert not taken.missing_keys
        assert not taken.unexpected_keys


# ---- reset ----


@remembering
def test_resetting_running_statistics_begins_anew_and_forgets_the_skipped(name):
    layer = ours(name, affine=True, track_running_stats=True)
    layer(numbers(name)), layer(numbers(name) * torch.nan)
    assert (layer.num_batches_tracked, layer.num_batches_skipped) == (1, 1)
    layer.weight.data.fill_(2)
    layer.reset_running_stats()
    fresh = ours(name, affine=True, track_running_stats=True)
    assert all(torch.equal(b, dict(fresh.named_buffers())[key]) for key, b in layer.named_buffers())
    assert (layer.weight == 2).all()


@every_preset
def test_resetting_parameters_begins_anew(name):
    layer = ours(name)
    layer(numbers(name))
    fresh = copy.deepcopy(layer)
    fresh.reset_parameters()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    layer.reset_parameters()
    assert_same(dict(layer.named_parameters()), dict(fresh.named_parameters()))
    assert all((p == (0 if key == "bias" else 1)).all() for key, p in layer.named_parameters())
    if getattr(layer, "running_mean", None) is not None:
        assert (layer.running_mean == 0).all()
        assert (layer.running_var == 1).all()


# ---- source= ----


@remembering
@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
def test_a_running_source_is_torchs_momentum(name, momentum):
    mine = ours(name, source=hs.Running(momentum))
    usual = ours(name, momentum=momentum, track_running_stats=True)
    for seed in range(3):
        x = numbers(name, seed)
        assert_same(mine(x), usual(x))
    assert_same(mine.state_dict(), usual.state_dict())
    assert (mine.momentum, mine.track_running_stats) == (momentum, True)
    assert_same(mine.eval()(x), usual.eval()(x))


@remembering
def test_a_batch_source_remembers_nothing_and_measures_in_evaluation_too(name):
    layer = ours(name, source=hs.Batch())
    assert not list(layer.buffers())
    assert layer.track_running_stats is False
    x = numbers(name)
    assert_same(layer(x), layer.eval()(x))
    assert_same(layer(x), torchs(name, track_running_stats=False)(x))


@remembering
def test_a_frozen_source_trusts_its_memory_in_training_and_never_changes_it(name):
    layer = ours(name, affine=True, source=hs.Frozen())
    with torch.no_grad():
        layer.running_mean.fill_(3.0), layer.running_var.fill_(4.0)
    before = copy.deepcopy(layer.state_dict())
    x = numbers(name).requires_grad_()
    y = layer.train()(x)
    assert_same(y, (x - 3) / (4 + layer.eps) ** 0.5)
    y.sum().backward()
    assert_same(x.grad, torch.full_like(x, (4 + layer.eps) ** -0.5))  # constants: no gradient through them
    assert layer.weight.grad is not None
    assert_same(layer.state_dict(), before)


@pytest.mark.parametrize("name", WITHIN_A_SAMPLE)
def test_presets_within_a_sample_take_a_batch_source_and_nothing_that_remembers(name):
    x = numbers(name)
    assert_same(ours(name, source=hs.Batch())(x), ours(name)(x))
    for source in (hs.Running(), hs.Frozen()):
        with pytest.raises(TypeError, match="nothing to remember"):
            ours(name, source=source)


@remembering
@pytest.mark.parametrize("kwargs", [{"momentum": 0.1}, {"momentum": None}, {"track_running_stats": True}])
def test_a_source_and_what_it_decides_may_not_both_be_given(name, kwargs):
    with pytest.raises(TypeError, match=f"decides {next(iter(kwargs))}= itself"):
        ours(name, source=hs.Running(), **kwargs)
    with pytest.raises(TypeError, match="decides momentum= itself"):
        getattr(hs.nn, name)(4, 1e-5, 0.1, source=hs.Running())


@every_preset
@pytest.mark.parametrize("wrong", ["running", 0.1, hs.Running])
def test_what_is_no_source_is_refused_by_name(name, wrong):
    with pytest.raises(TypeError, match="is not a source"):
        ours(name, source=wrong)


def test_a_missing_or_unknown_argument_is_a_type_error_with_a_source_too():
    with pytest.raises(TypeError, match="num_features"):
        hs.nn.BatchNorm2d(source=hs.Running())
    with pytest.raises(TypeError, match="foo"):
        hs.nn.BatchNorm2d(4, foo=1, source=hs.Running())


@remembering
def test_a_source_set_later_decides_from_then_on(name):
    layer = ours(name, track_running_stats=True)
    layer(numbers(name))
    before = copy.deepcopy(layer.state_dict())
    layer.source = hs.Frozen()
    layer(numbers(name, 1))
    assert_same(layer.state_dict(), before)
    layer.source = None  # torch's attributes decide again
    layer(numbers(name, 1))
    assert layer.num_batches_tracked == 2


@remembering
def test_a_source_that_lacks_its_memory_is_refused_when_set(name):
    layer = ours(name, track_running_stats=False)
    with pytest.raises(TypeError, match=r"running_mean.*made without"):
        layer.source = hs.Running()


def test_a_given_source_outlives_changes_of_torchs_attributes():
    layer = ours("BatchNorm2d", source=hs.Running(1.0))
    layer.momentum = 0.0
    layer(numbers("BatchNorm2d"))
    assert_same(layer.running_mean, numbers("BatchNorm2d").mean((0, 2, 3)))


# ---- attributes changed after construction ----


@pytest.mark.parametrize("momentum", [0.0, 0.5, 1.0, None])
@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"])
def test_a_momentum_changed_later_is_followed_as_torch_does(name, momentum):
    layers = ours(name), torchs(name)
    for layer in layers:
        for seed in range(4):
            layer(numbers(name, seed))
            layer.momentum = momentum
    assert_same(layers[0].state_dict(), layers[1].state_dict())


@pytest.mark.parametrize("name", list(MADE))
def test_an_eps_changed_later_is_followed_as_torch_does(name):
    layers = ours(name), torchs(name)
    for layer in layers:
        layer(numbers(name))  # lazy ones learn their size
        layer.eps = 0.5
    assert_same(layers[0](numbers(name)), layers[1](numbers(name)))
    assert_same(layers[0].eval()(numbers(name)), layers[1].eval()(numbers(name)))


@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"])
def test_tracking_switched_off_later_stops_the_memory_and_keeps_trusting_it_in_evaluation(name):
    layers = ours(name), torchs(name)
    for layer in layers:
        layer(numbers(name))
        layer.track_running_stats = False
    assert_same(layers[0](numbers(name, 1)), layers[1](numbers(name, 1)))
    assert_same(layers[0].state_dict(), layers[1].state_dict())
    assert_same(layers[0].eval()(numbers(name, 1)), layers[1].eval()(numbers(name, 1)))


@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"])
def test_tracking_switched_on_later_without_memory_measures_every_batch(name):
    layers = ours(name), torchs(name)
    for layer in layers:
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        layer.track_running_stats = True
    assert_same(layers[0](numbers(name)), layers[1](numbers(name)))
    assert_same(layers[0].eval()(numbers(name)), layers[1].eval()(numbers(name)))


@pytest.mark.parametrize("name", ["InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"])
def test_instance_norm_with_tracking_switched_off_later_measures_and_leaves_its_memory_alone(name):
    layers = ours(name, track_running_stats=True), torchs(name, track_running_stats=True)
    for layer in layers:
        layer.track_running_stats = False
    x = numbers(name)
    assert_same(layers[0](x), layers[1](x))
    assert (layers[0].running_mean == 0).all()
    assert (layers[1].running_mean != 0).all()  # on purpose otherwise: torch goes on writing what it no longer reads
    assert_same(layers[0].eval()(x), layers[1].eval()(x))


# ---- errors ----

BAD_CALLS = {
    "wrong rank": [
        ("BatchNorm1d", (4,), {}, (5,)),
        ("BatchNorm1d", (4,), {}, (2, 4, 3, 3)),
        ("BatchNorm2d", (4,), {}, (2, 4)),
        ("BatchNorm3d", (4,), {}, (2, 4, 3, 3)),
        ("InstanceNorm1d", (4,), {}, (4,)),
        ("InstanceNorm2d", (4,), {}, (2, 4)),
        ("InstanceNorm2d", (4,), {}, (2, 4, 3, 3, 3)),
        ("InstanceNorm3d", (4,), {}, (4, 3, 3)),
        ("GroupNorm", (2, 4), {}, (4,)),
        ("GroupNorm", (2, 4), {}, ()),
        ("LayerNorm", ((3, 4),), {}, (4,)),
        ("LayerNorm", (4,), {}, ()),
        ("LazyBatchNorm2d", (), {}, (2, 4)),
        ("LazyInstanceNorm2d", (), {}, (2, 4)),
    ],
    "wrong channels": [
        ("BatchNorm2d", (4,), {}, (2, 3, 5, 5)),
        ("BatchNorm2d", (4,), {"affine": False}, (2, 3, 5, 5)),
        ("BatchNorm2d", (4,), {"track_running_stats": False}, (2, 3, 5, 5)),
        ("GroupNorm", (2, 4), {}, (2, 6, 3)),
        ("GroupNorm", (2, 4), {}, (2, 5, 3)),
        ("GroupNorm", (2, 4), {"affine": False}, (2, 5, 3)),
        ("InstanceNorm2d", (4,), {"affine": True}, (2, 3, 5, 5)),
        ("InstanceNorm2d", (4,), {"track_running_stats": True}, (2, 3, 5, 5)),
        ("InstanceNorm2d", (4,), {"affine": True}, (3, 5, 5)),
    ],
    "one value": [
        ("BatchNorm1d", (4,), {}, (1, 4)),
        ("BatchNorm2d", (4,), {"track_running_stats": False}, (1, 4, 1, 1)),
        ("GroupNorm", (4, 4), {}, (1, 4)),
        ("InstanceNorm1d", (4,), {}, (2, 4, 1)),
        ("InstanceNorm2d", (4,), {"track_running_stats": True}, (2, 4, 1, 1)),
    ],
    "indivisible groups": [("GroupNorm", (3, 4), {}, (2, 4, 3)), ("GroupNorm", (0, 4), {}, (2, 4, 3))],
    "wrong normalized_shape": [
        ("LayerNorm", (4,), {}, (2, 5)),
        ("LayerNorm", (4,), {"elementwise_affine": False}, (2, 5)),
        ("LayerNorm", ((3, 4),), {}, (3, 2, 4)),
        ("LayerNorm", ((),), {}, (2, 4)),
        ("RMSNorm", (4,), {}, (2, 5)),
        ("RMSNorm", ((3, 4),), {}, (2, 4)),
    ],
}


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "shape"),
    [call for calls in BAD_CALLS.values() for call in calls],
    ids=[f"{what}-{call[0]}-{call[3]}" for what, calls in BAD_CALLS.items() for call in calls],
)
def test_a_bad_call_raises_what_torch_raises(name, args, kwargs, shape):
    theirs = raised(lambda: getattr(torch.nn, name)(*args, **kwargs)(torch.randn(shape)))
    mine = raised(lambda: getattr(hs.nn, name)(*args, **kwargs)(torch.randn(shape)))
    assert isinstance(mine, type(theirs)), f"torch raises {theirs!r}, here it is {mine!r}"
    assert str(mine)


@pytest.mark.parametrize("name", EAGER)
def test_an_input_that_is_not_floating_raises_what_torch_raises_and_a_type_error(name):
    for dtype in (torch.int64, torch.uint8, torch.bool, torch.complex64):
        x = torch.ones(MADE[name][1], dtype=dtype)
        mine = raised(lambda x=x: ours(name)(x))
        assert isinstance(mine, TypeError)
        if name == "RMSNorm":
            continue  # torch promotes integers there, by way of a warning
        theirs = raised(lambda x=x: torchs(name)(x))
        assert isinstance(mine, type(theirs)), f"torch raises {theirs!r}, here it is {mine!r}"


def raised(call):
    with pytest.raises(Exception) as caught:  # noqa: PT011  (whatever torch raises is the question)
        call()
    return caught.value


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "shape"),
    [
        ("BatchNorm1d", (4,), {}, (1, 4)),
        ("BatchNorm2d", (4,), {}, (1, 4, 1, 1)),
        ("InstanceNorm2d", (4,), {"track_running_stats": True}, (2, 4, 1, 1)),
    ],
)
def test_one_value_is_enough_in_evaluation(name, args, kwargs, shape):
    x = torch.randn(shape)
    layers = (getattr(library, name)(*args, **kwargs).eval() for library in (hs.nn, torch.nn))
    assert_same(*(layer(x) for layer in layers))


def test_several_samples_of_one_value_pass_through_group_norm_as_in_torch():
    x = torch.randn(2, 4)
    assert torch.nn.GroupNorm(4, 4)(x).abs().max() < 1e-2  # rounding, divided by sqrt(eps)
    assert (hs.nn.GroupNorm(4, 4)(x) == 0).all()


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_without_gain_and_memory_takes_any_number_of_channels(training):
    x = torch.randn(5, 7, 3, 3)
    kwargs = {"affine": False, "track_running_stats": False}
    assert_same(*(library.BatchNorm2d(4, **kwargs).train(training)(x) for library in (hs.nn, torch.nn)))


def test_group_norm_without_gain_takes_any_number_of_channels_that_its_groups_divide():
    x = torch.randn(5, 6, 3)
    assert_same(*(library.GroupNorm(2, 4, affine=False)(x) for library in (hs.nn, torch.nn)))


def test_instance_norm_without_gain_and_memory_warns_about_other_channels_as_torch_does():
    x = torch.randn(5, 7, 3, 3)
    with pytest.warns(UserWarning, match="not used because affine=False"):
        mine = hs.nn.InstanceNorm2d(4)(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same(mine, torch.nn.InstanceNorm2d(4)(x))


def test_an_error_says_what_was_given():
    with pytest.raises(ShapeError, match=r"c was given as 4.* has 3 there: \(2, 3, 5, 5\)"):
        hs.nn.BatchNorm2d(4)(torch.randn(2, 3, 5, 5))
    with pytest.raises(ShapeError, match=r"normalized_shape=\[4\].* \[2, 5\]"):
        hs.nn.LayerNorm(4)(torch.randn(2, 5))
    with pytest.raises(ValueError, match=r"more than 1 value per channel.*\(1, 4\).*use a larger batch"):
        hs.nn.BatchNorm1d(4)(torch.randn(1, 4))


@pytest.mark.parametrize("name", EAGER)
def test_an_empty_batch_passes_and_leaves_the_memory_alone(name):
    layer = ours(name)
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(0, *MADE[name][1][1:], requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert (y.shape, x.grad.shape) == (x.shape, x.shape)
    after = layer.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
