"""Any norm becomes any norm; the certificate says by how much, and undoes it to the bit."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import homeostat as hs


def net(norm=nn.BatchNorm2d):
    """Trained a little: gains and memory are not where they began."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3), norm(8), nn.ReLU(), nn.Flatten(2)
    )
    with torch.no_grad():
        for x in data():
            model(x)
        for module in model:
            if getattr(module, "weight", None) is not None and module.weight.dim() == 1:
                module.weight.normal_(1, 0.3)
                module.bias.normal_()
    return model


def data(n=3):
    torch.manual_seed(1)
    return [torch.randn(6, 3, 9, 9) * (1 + i) + 0.5 for i in range(n)]


def assert_same(model, other):
    one, two = model.state_dict(), other.state_dict()
    assert list(one) == list(two)
    assert all(torch.equal(one[name], two[name]) for name in one)


def outputs(model, batches, layer=None):
    """Of the model, or of a layer in it; in evaluation, in double."""
    model = copy.deepcopy(model).eval()
    seen = []
    hook = (model if layer is None else model.get_submodule(layer)).register_forward_hook(
        lambda _m, _x, y: seen.append(y.double().clone())
    )
    with torch.no_grad():
        for x in batches:
            model(x)
    hook.remove()
    return seen


def largest_move(before, after):
    return max(float((b - a).abs().max() / a.square().mean().sqrt()) for a, b in zip(before, after, strict=True))


# ---------------------------------------------------------------- what it does


def test_batch_norm_becomes_group_norm_and_the_certificate_says_by_how_much():
    model, batches = net(), data()
    new, said = hs.replace(model, {"BatchNorm*": hs.nn.GroupNorm}, keep_function_on=batches)
    assert [type(m) for m in (new[1], new[4])] == [hs.nn.GroupNorm] * 2
    assert said.drift == pytest.approx(largest_move(outputs(model, batches), outputs(new, batches)), rel=1e-6)
    for change in said.changed:
        was, now = outputs(model, batches, change.layer), outputs(new, batches, change.layer)
        assert change.drift == pytest.approx(largest_move(was, now), rel=1e-6)
        whole, off = torch.cat(was), torch.cat(now) - torch.cat(was)
        assert change.after == pytest.approx(float(off.norm() / (whole - whole.mean()).norm()), rel=1e-4)
        assert change.after < change.before
    plain, _ = hs.replace(model, {"BatchNorm*": hs.nn.GroupNorm})
    assert said.carried == pytest.approx(largest_move(outputs(model, batches), outputs(plain, batches)), rel=1e-6)
    assert said.samples == 18
    assert "1 (BatchNorm2d) is now GroupNorm" in str(said)


def test_refitted_gains_are_the_least_squares_of_each_channel_given_what_comes_now():
    model, batches = net(), data()
    new, _ = hs.replace(model, {"BatchNorm*": lambda old: hs.nn.GroupNorm(2, 8)}, batches)
    wanted = torch.cat(outputs(model, batches, "4"))
    x = torch.cat(outputs(new, batches, "3"))
    y = F.group_norm(x, 2, eps=1e-5)
    for c in range(8):
        a = torch.stack([y[:, c].flatten(), torch.ones(y[:, c].numel(), dtype=torch.float64)], 1)
        w, b = torch.linalg.lstsq(a, wanted[:, c].flatten()).solution
        assert float(new[4].weight[c]) == pytest.approx(float(w), rel=1e-4, abs=1e-5)
        assert float(new[4].bias[c]) == pytest.approx(float(b), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("target", [hs.nn.GroupNorm, nn.InstanceNorm2d, hs.Ghost(3), nn.SyncBatchNorm], ids=str)
def test_every_replacement_is_undone_to_the_bit(target):
    model, batches = net(), data()
    new, said = hs.replace(model, {"BatchNorm*": target}, batches)
    for back in (said.undo(new), said.undo(copy.deepcopy(new)), said.undo(new, inplace=True)):
        assert_same(model, back)
        assert [type(m) for m in back] == [type(m) for m in model]
        assert [m.training for m in back.modules()] == [m.training for m in model.modules()]
    with pytest.raises(ValueError, match="of another model"):
        said.undo(nn.Sequential(*(nn.Identity() for _ in range(6))))


def test_undone_after_training_the_rest_stays_as_it_was_trained():
    model, batches = net(), data()
    new, said = hs.replace(model, {"BatchNorm*": hs.nn.GroupNorm}, batches)
    with torch.no_grad():
        new[3].weight += 1
    back = said.undo(new)
    assert torch.equal(back[3].weight, new[3].weight)
    assert torch.equal(back[4].running_var, model[4].running_var)


def test_there_and_back_again_without_the_certificate_comes_close():
    model, batches = net(), data()
    new, _ = hs.replace(model, {"BatchNorm*": hs.nn.GroupNorm}, batches)
    back, _ = hs.replace(new, {"GroupNorm": hs.nn.BatchNorm2d}, batches)
    assert largest_move(outputs(model, batches), outputs(back, batches)) < 2 * largest_move(
        outputs(model, batches), outputs(new, batches)
    )
    assert torch.isfinite(back[1].running_var).all()
    assert (back[1].running_mean != 0).all()


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, hs.nn.BatchNorm2d])
def test_norms_that_sync_become_plain_ones_with_all_they_have(kind):
    model = nn.SyncBatchNorm.convert_sync_batchnorm(net())
    model[1].momentum, model[4].eps = 0.3, 1e-4
    new, said = hs.replace(model, {"SyncBatchNorm": kind}, data())
    assert [type(m) for m in (new[1], new[4])] == [kind] * 2
    assert_same(model, new)
    assert (new[1].momentum, new[4].eps) == (0.3, 1e-4)
    assert said.drift < 1e-6
    assert not any(hs.replace(model, {"SyncBatchNorm": kind})[1].left)


def test_a_source_leaves_the_layer_and_changes_where_its_statistics_come_from():
    model = net()
    new, said = hs.replace(model, {"1": hs.Frozen(), "4": hs.Domain(3)}, data()[:1], forward=lambda m, x: m[1](m[0](x)))
    assert new[1].source == hs.Frozen()
    assert new[4].running_mean.shape == (3, 8)
    assert torch.equal(new[4].running_mean, model[4].running_mean.expand(3, 8))
    assert torch.equal(new[4].weight, model[4].weight)
    assert [change.note for change in said.changed] == [
        "not refitted: its parameters are the very same",
        "these batches do not reach it",
    ]
    norm = hs.Norm("n c h w -> c h", hs.Running(), hs.Learned("c"), c=8, h=9)
    other, _ = hs.replace(nn.Sequential(norm), {"*": hs.Cumulative()})
    assert other[0].source == hs.Cumulative()
    assert_same(nn.Sequential(hs.Norm("n c h w -> c h", hs.Cumulative(), hs.Learned("c"), c=8, h=9)), other)


def test_which_norms_is_said_by_class_name_predicate_or_several_and_the_first_match_counts():
    model = net()
    what = {"4": nn.InstanceNorm2d, lambda m: getattr(m, "num_features", 0) == 8: hs.nn.GroupNorm}
    new, said = hs.replace(model, what, data())
    assert [type(m) for m in (new[1], new[4])] == [hs.nn.GroupNorm, nn.InstanceNorm2d]
    assert not new[4].track_running_stats
    assert len(said.changed) == 2
    with pytest.raises(ValueError, match=r"'Layer\*' is none of the norms of this model: 1 \(BatchNorm2d\), 4"):
        hs.replace(model, {"Layer*": nn.GroupNorm})
    with pytest.raises(TypeError, match="one module cannot take many places"):
        hs.replace(model, {"1": nn.GroupNorm(2, 8)})
    with pytest.raises(TypeError, match="which norms become what"):
        hs.replace(model, hs.nn.GroupNorm)
    with pytest.raises(TypeError, match="no function of a module"):
        hs.replace(model, {3: nn.GroupNorm})
    with pytest.raises(TypeError, match="a factory takes the old module and gives a new one"):
        hs.replace(model, {"1": lambda old: None})


def test_the_model_given_stays_as_it_is_unless_it_is_asked_for():
    model, batches = net().train(), data()
    model[1].eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    new, _ = hs.replace(model, {"BatchNorm*": hs.nn.GroupNorm}, batches)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert [m.training for m in model.modules()] == modes == [m.training for m in new.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in (*model.modules(), *new.modules()))
    conv = model[0]
    same, _ = hs.replace(model, {"BatchNorm*": hs.nn.GroupNorm}, batches, inplace=True)
    assert same is model
    assert same[0] is conv
    assert_same(new, same)
    with pytest.raises(ValueError, match="cannot be replaced in place"):
        hs.replace(nn.BatchNorm1d(3), {"*": nn.GroupNorm}, inplace=True)
    alone, said = hs.replace(nn.BatchNorm1d(3), {"*": nn.GroupNorm})
    assert type(alone) is nn.GroupNorm
    assert type(said.undo(alone)) is nn.BatchNorm1d


def test_after_an_error_even_a_model_changed_in_place_is_as_it_was():
    model = net()
    before, kinds = copy.deepcopy(model.state_dict()), [type(m) for m in model]
    calls = []

    def forward(m, x):
        calls.append(type(m[1]))
        if calls.count(nn.GroupNorm) > 1:
            raise RuntimeError("lost")
        return m(x)

    with pytest.raises(RuntimeError, match="lost"):
        hs.replace(model, {"BatchNorm*": nn.GroupNorm}, data(), forward=forward, inplace=True)
    assert [type(m) for m in model] == kinds
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


# ---------------------------------------------------------------- what models are made of


def test_shared_norms_are_replaced_once_and_stay_shared():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.lin = nn.BatchNorm1d(6), nn.Linear(6, 6)
            self.b = self.a
            self.all = [self.a, self.lin]
            self.__dict__["hidden"] = (self.a,)

        def forward(self, x):
            return self.all[0](self.lin(self.b(x))) + self.hidden[0](x)

    model, x = Shared(), [torch.randn(9, 6) * 2 + 1]
    new, said = hs.replace(model, {"BatchNorm1d": hs.nn.LayerNorm}, x)
    assert type(new.a) is hs.nn.LayerNorm
    assert new.a is new.b is new.all[0] is new.hidden[0]
    assert len(said.changed) == 1
    assert type(model.hidden[0]) is nn.BatchNorm1d
    back = said.undo(new)
    assert back.a is back.b is back.all[0] is back.hidden[0]
    assert_same(model, back)
    assert hs.replace(model, {"b": hs.nn.LayerNorm}, x)[1].changed[0].layer == "a"


def test_tied_weights_stay_tied_and_are_not_refitted():
    model = net()
    model[4].weight = model[1].weight
    new, said = hs.replace(model, {"4": hs.nn.GroupNorm}, data())
    assert new[4].weight is new[1].weight
    assert torch.equal(new[4].weight, model[4].weight)
    assert "its weight is tied to 1.weight" in said.changed[0].note
    back = said.undo(new)
    assert back[4].weight is back[1].weight
    _, said = hs.replace(model, {"4": lambda old: hs.nn.RMSNorm(7)})
    assert "tied to 1.weight, and the new norm has none of that shape" in dict(said.left)["4"]


def test_hooks_and_modes_go_along_and_handles_still_remove_them():
    model, seen = net().eval(), []
    handle = model[1].register_forward_hook(lambda m, x, y: seen.append(type(m)))
    hs.replace(model, {"1": hs.nn.GroupNorm}, inplace=True)
    model(data()[0])
    assert seen == [hs.nn.GroupNorm]
    handle.remove()
    model(data()[0])
    assert len(seen) == 1
    assert not model[1].training


def test_norms_written_by_hand_are_replaced_by_their_behaviour():
    class Hand(nn.Module):
        def __init__(self, d):
            super().__init__()
            self.weight, self.variance_epsilon = nn.Parameter(torch.zeros(d)), 1e-6

        def forward(self, x):  # the gain is learned around 0
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), Hand(6), nn.Linear(6, 6))
    with torch.no_grad():
        model[1].weight.normal_()
    x = [torch.randn(4, 5, 6)]
    new, said = hs.replace(model, {"Hand": hs.nn.RMSNorm}, x)
    assert (new[1].eps, new[1].normalized_shape) == (1e-6, (6,))
    torch.testing.assert_close(new[1].weight, 1 + model[1].weight, rtol=1e-5, atol=1e-6)
    assert said.drift < 1e-5
    new, said = hs.replace(model, {"Hand": hs.nn.RMSNorm})
    assert said.changed == ()
    assert "there are none" in dict(said.left)["1"]


class Loud(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


def test_what_cannot_be_replaced_is_left_and_named():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.loud, self.parametrized, self.plain = Loud(8), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
            nn.utils.parametrize.register_parametrization(self.parametrized, "weight", nn.Identity())
            with torch.no_grad():
                self.hooked = nn.utils.weight_norm(nn.LayerNorm([8, 9, 9]), dim=None)
            self.compiled = torch.compile(nn.BatchNorm2d(8), backend="eager")
            self.scripted = torch.jit.script(nn.BatchNorm2d(8))
            self.quantized = torch.ao.nn.quantized.BatchNorm2d(8)

        def forward(self, x):
            return self.scripted(self.compiled(self.hooked(self.plain(self.parametrized(self.loud(x))))))

    batches = [torch.randn(4, 8, 9, 9)]
    new, said = hs.replace(Model(), {"*": hs.nn.GroupNorm}, batches)
    left = dict(said.left)
    assert [change.layer for change in said.changed] == ["plain"]
    assert "fused into it" in left["loud"]
    assert "parametrized" in left["parametrized"]
    assert "a hook makes its parameters" in left["hooked"]
    assert "torch.compile" in left["compiled"]
    assert "torch.jit.script" in left["scripted"]
    assert "quantized" in left["quantized"]
    with pytest.raises(ValueError, match="not seen an input yet"):
        hs.replace(nn.Sequential(nn.LazyBatchNorm1d()), {"*": nn.LayerNorm}, batches)
    assert isinstance(new.parametrized, nn.BatchNorm2d)


def test_a_norm_that_cannot_stand_there_is_left_and_the_reason_given():
    model, batches = net(), data()
    for target, why in {
        hs.nn.LayerNorm: "its features are the second axis, and LayerNorm takes the last",
        nn.BatchNorm1d: "cannot be called as it is",
        nn.LocalResponseNorm: "needs size, which this place does not say",
    }.items():
        _, said = hs.replace(model, {"BatchNorm2d": target}, batches)
        assert why in dict(said.left)["1"]
    _, said = hs.replace(model, {"1": lambda old: nn.Sequential(hs.nn.GroupNorm(2, 8), nn.ReLU())}, batches)
    assert "not refitted" in said.changed[0].note
    _, said = hs.replace(nn.Sequential(nn.LayerNorm(6)), {"*": hs.Frozen()})
    assert "nothing to remember" in dict(said.left)["0"]


class Acting(nn.BatchNorm2d):
    """Norm, dropout and activation in one, as timm has them."""

    def __init__(self, c):
        super().__init__(c)
        self.drop, self.act = nn.Dropout(), nn.SiLU()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class Twice(Acting):
    def forward(self, x):
        return super().forward(x) * 2


def test_a_norm_with_its_activation_inside_is_replaced_before_it_where_that_is_all_it_does():
    model, batches = net(Acting), data()
    new, said = hs.replace(model, {"Acting": hs.nn.GroupNorm}, batches)
    assert [change.into for change in said.changed] == ["GroupNorm, then its drop and act"] * 2
    assert said.drift == pytest.approx(largest_move(outputs(model, batches), outputs(new, batches)), rel=1e-6)
    x = torch.cat(outputs(model, batches, "0"))
    bn, gn = model[1], new[1].norm
    bn.double(), gn.double()
    wanted = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)
    y = F.group_norm(x, gn.num_groups)
    for c in range(8):  # least squares before the activation
        a = torch.stack([y[:, c].flatten(), torch.ones(y[:, c].numel(), dtype=torch.float64)], 1)
        fit = torch.linalg.lstsq(a, wanted[:, c].flatten()).solution
        torch.testing.assert_close(torch.stack([gn.weight[c], gn.bias[c]]).detach(), fit, rtol=1e-4, atol=1e-5)
    same, said = hs.replace(net(Acting), {"Acting": nn.BatchNorm2d}, batches)
    assert said.drift < 1e-6
    assert torch.equal(same[4].norm.running_var, net(Acting)[4].running_var)
    assert_same(net(Acting), said.undo(same))
    _, said = hs.replace(net(Twice), {"Twice": hs.nn.GroupNorm}, batches)
    assert not said.changed
    assert "done by this Twice: give a factory" in dict(said.left)["1"]


def test_a_norm_whose_attributes_the_model_reads_stays_and_the_others_go():
    class Reading(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.free = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.free(self.read(x) * self.read.num_features)

    for inplace in (False, True):
        new, said = hs.replace(Reading(), {"*": hs.nn.GroupNorm}, [torch.randn(3, 4, 5, 5)], inplace=inplace)
        assert type(new.read) is nn.BatchNorm2d
        assert type(new.free) is hs.nn.GroupNorm
        assert "does not run with a GroupNorm there: AttributeError" in dict(said.left)["read"]


@pytest.mark.parametrize("masked", [False, True])
def test_encoder_layers_that_compute_all_at_once_call_what_stands_in_them_again(masked):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2).eval(), torch.randn(3, 5, 8)
    mask = torch.arange(5) >= torch.tensor([5, 3, 4])[:, None] if masked else None

    def run(m, x):
        with torch.no_grad():
            return m(x, src_key_padding_mask=mask)[0]

    new, said = hs.replace(model, {"LayerNorm": hs.nn.RMSNorm}, [x], forward=run)
    moved = float((run(new, x) - run(model, x)).abs().max() / run(model, x).square().mean().sqrt())
    assert said.drift == pytest.approx(moved, rel=1e-4)
    assert moved > 0.1
    back = said.undo(new)
    assert [one.activation_relu_or_gelu for one in back.layers] == [1, 1]
    assert back.use_nested_tensor == model.use_nested_tensor
    assert torch.equal(run(back, x), run(model, x))


def test_models_that_are_compiled_as_a_whole_are_refused_by_name_and_others_do_not_need_values():
    with pytest.raises(ValueError, match=r"compiled by torch\.jit\.script; take what it was made of"):
        hs.replace(torch.jit.script(net()), {"*": hs.nn.GroupNorm})
    with pytest.raises(ValueError, match=r"the model itself: it is compiled by torch\.compile"):
        hs.replace(torch.compile(net(), backend="eager"), {"BatchNorm*": hs.nn.GroupNorm})
    assert type(hs.replace(net().to("meta"), {"1": hs.nn.GroupNorm})[0][1]) is hs.nn.GroupNorm


def test_hooks_on_gradients_go_along_too():
    model, seen = net(), []
    model[4].register_full_backward_hook(lambda m, dx, dy: seen.append((type(m), dx[0].shape)))
    hs.replace(model, {"4": hs.nn.GroupNorm}, data(), inplace=True)
    model(data()[0]).sum().backward()
    assert seen == [(hs.nn.GroupNorm, (6, 8, 5, 5))]


def test_targets_that_cannot_be_made_are_said_to_be_so():
    _, said = hs.replace(net(), {"1": nn.LazyBatchNorm2d}, data())
    assert "give the class that it becomes" in dict(said.left)["1"]
    with pytest.raises(TypeError, match=r"write Frozen\(...\)"):
        hs.replace(net(), {"1": hs.Frozen})


def test_a_norm_of_ours_that_does_more_is_not_taken_for_one_that_does_not():
    _, said = hs.replace(net(), {"1": hs.nn.EvoNormB0}, data())
    assert said.changed[0].after < said.changed[0].before
    assert hs.recognise(nn.Sequential(hs.nn.EvoNormB0(8)))["0"].fused
    new, said = hs.replace(nn.Sequential(hs.nn.PowerNorm(3)), {"PowerNorm": hs.nn.GroupNorm}, data())
    assert type(new[0]) is hs.nn.GroupNorm


class Counting(nn.Module):
    """Changes whenever it is called."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.seen += 1
        return x


ACTS = {
    "replace": lambda m, x: hs.replace(m, {"BatchNorm*": hs.nn.GroupNorm}, x),
    "insert": lambda m, x: hs.insert(m, "0", hs.nn.BatchNorm2d(8), x),
    "fold": hs.fold,
    "recalibrate": hs.recalibrate,
    "recalibrate in one pass": lambda m, x: hs.recalibrate(m, x, one_by_one=False),
    "freeze": hs.freeze,
    "shift": lambda m, x: (m, hs.shift(m, x)),
}


@pytest.mark.parametrize("act", ACTS)
def test_running_the_model_leaves_no_trace_in_it_nor_in_the_new_one(act):
    model, batches = net().append(Counting()), data()
    random = torch.get_rng_state()
    new, _ = ACTS[act](model, batches)
    for one in (model, new):
        assert (one[-1].calls, float(one[-1].seen)) == (0, 0)
    assert torch.equal(torch.get_rng_state(), random)


class Group:
    """A process group, as far as copying goes."""

    def __reduce_ex__(self, protocol):
        raise TypeError("cannot pickle a process group")


def test_process_groups_stay_the_same_ones_where_models_are_copied():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(net()).eval()
    model[1].process_group = model[4].process_group = Group()
    for act in ("insert", "fold", "recalibrate", "freeze"):
        ACTS[act](model, data())
    new, said = hs.replace(model, {"4": nn.BatchNorm2d}, data())
    assert said.undo(new)[4].process_group is model[4].process_group
