"""Models on several machines: converted, under DDP, FSDP2 and the compiler, pooled, saved and continued."""

import copy
import pickle
import re

import on_machines
import on_ranks
import pytest
import torch
from ranks import together, values
from torch import nn

import homeostat as hs
from homeostat.kernels import exchange

CHECKS = [
    (check.__name__, check)
    for check in (
        on_machines.torch_layers,
        on_machines.sharded,
        on_machines.compiled,
        on_machines.pooled,
        on_machines.pooled_of_some,
    )
]


@pytest.fixture(scope="module")
def answers():
    return values(together(4, on_ranks.answers, CHECKS, timeout=30))


@pytest.mark.parametrize("name", [name for name, _ in CHECKS])
def test_on_four_ranks(answers, name):
    assert "".join(answer.get(name, "not reached") for answer in answers) == ""


@pytest.mark.parametrize("n", [4, 2])
def test_other_processes_continue_from_a_checkpoint_bit_for_bit_and_fewer_to_rounding(tmp_path, n):
    saved, resumed = on_machines.saved, on_machines.resumed
    want = values(together(4, saved, str(tmp_path / "saved")))[0]
    for got in values(together(n, resumed, str(tmp_path / "saved"))):
        assert got.keys() == want.keys()
        for key, value in want.items():
            torch.testing.assert_close(got[key], value, rtol=0, atol=0 if n == 4 else 1e-12, msg=key)


def test_a_graph_keeps_an_exchange_that_nobody_looks_at(monkeypatch):
    sent = []
    monkeypatch.setattr(exchange, "exchange", lambda parts, *_: sent.append(parts) or parts[None])

    def behind(x):
        torch.ops.homeostat.exchange(x, "", 1, "here")  # an empty rank has no use for what arrives
        return x + 1

    torch.compile(behind, backend="aot_eager", fullgraph=True)(torch.ones(3))
    assert len(sent) == 1


def model():
    return nn.ModuleDict(
        {
            "bn": nn.BatchNorm2d(4, momentum=0.3),
            "sync": nn.SyncBatchNorm(4),
            "ours": hs.nn.BatchNorm2d(4, source=hs.Domain(2)),
            "frozen": hs.nn.BatchNorm2d(4, source=hs.Frozen()),
            "table": hs.Norm("n c -> c", hs.Renorm(), c=4),
            "group": nn.GroupNorm(2, 4),
            "instance": hs.nn.InstanceNorm2d(4, track_running_stats=True),
            "layer": hs.nn.LayerNorm(4),
        }
    )


def test_sync_shares_what_pools_samples_and_leaves_the_rest():
    net = model()
    keys, ids = list(net.state_dict()), [id(p) for p in net.parameters()]
    hs.sync(net)
    assert {name: layer.source for name, layer in net.items() if hasattr(layer, "source")} == {
        "bn": hs.Synced(hs.Running(0.3), name="bn"),
        "sync": hs.Synced(hs.Running(0.1), name="sync"),
        "ours": hs.Synced(hs.Domain(2), name="ours"),
        "frozen": hs.Frozen(hs.Synced(hs.Running(0.1), name="frozen")),
        "table": hs.Synced(hs.Renorm(), name="table"),
        "instance": hs.Running(0.1),
        "layer": hs.Batch(),
    }
    assert list(net.state_dict()) == keys
    assert [id(p) for p in net.parameters()] == ids
    assert type(net["group"]) is nn.GroupNorm


def test_unsync_undoes_it_and_momentum_follows_the_layer_again():
    net = hs.unsync(hs.sync(model()))
    sources = {name: layer.source for name, layer in net.items() if hasattr(layer, "source")}
    assert not any("Synced" in str(source) for source in sources.values())
    assert sources["ours"] == hs.Domain(2)
    net["bn"].momentum = 0.7
    assert net["bn"].source == hs.Running(0.7)
    assert type(hs.unsync(nn.Sequential(nn.SyncBatchNorm(3)))[0]).__name__ == "BatchNorm"


def test_unsync_leaves_momentum_to_the_layer_even_where_it_changed_meanwhile():
    net = hs.sync(model())
    net["bn"].momentum = 0.7
    assert hs.unsync(net)["bn"].source == hs.Running(0.7)


class Odd(nn.BatchNorm2d):
    pass


class Far(nn.SyncBatchNorm):
    pass


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (lambda: hs.nn.BatchNorm2d(4, source=hs.Ghost(2)), "put together they were no parts"),
        (lambda: hs.nn.LazyBatchNorm2d(), "it has not seen an input yet; run one forward first"),
        (lambda: Odd(4), "a subclass of BatchNorm2d whose forward may differ"),
        (lambda: Far(4), "a subclass of SyncBatchNorm whose forward may differ"),
        (lambda: hs.nn.PowerNorm(4), "it measures in code of its own"),
        (lambda: torch.jit.script(nn.BatchNorm2d(4)), "compiled by torch.jit.script"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_cannot_be_shared_is_named(layer, why):
    net = nn.ModuleDict({"it": layer()})
    kind = type(net["it"])
    with pytest.warns(
        UserWarning, match=re.escape(f"homeostat.sync left 1 alone: it ({kind.__name__}): ") + f".*{why}"
    ):
        hs.sync(net)
    assert type(net["it"]) is kind


def test_sync_keeps_parametrizations():
    for norm in (nn.BatchNorm2d(4), nn.SyncBatchNorm(4)):
        net = hs.sync(nn.Sequential(nn.utils.parametrize.register_parametrization(norm, "weight", nn.Softplus())))
        assert isinstance(net[0].source, hs.Synced)
        assert torch.equal(net[0].weight, nn.functional.softplus(net[0].parametrizations.weight.original))


class Group:
    group_name = "7"


def test_sync_keeps_the_group_and_the_name_a_layer_had():
    own = hs.Synced(hs.Running(), "pair", "mine")
    net = nn.Sequential(hs.nn.BatchNorm2d(4, source=own), nn.SyncBatchNorm(4, process_group=Group()))
    assert [layer.source for layer in hs.sync(net)] == [own, hs.Synced(hs.Running(), "7", "1")]
    assert {layer.source.group for layer in hs.sync(net, "all")} == {"all"}
    theirs = hs.sync(nn.SyncBatchNorm(4, process_group=Group()), "all")
    assert theirs.source.group == "all"
    assert not hasattr(theirs, "process_group")  # which could not be copied


@pytest.mark.parametrize("inner", [hs.Ghost(2), hs.Virtual(), hs.Mixed(), hs.Blended(), hs.Synced()])
def test_sources_that_measure_samples_apart_are_refused(inner):
    with pytest.raises(TypeError, match="Synced does not go around"):
        hs.Synced(inner)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: hs.nn.GroupNorm(2, 4, source=hs.Synced(hs.Batch())),
        lambda: hs.Norm("n c ... -> n c", hs.Synced(), c=4),
    ],
)
def test_frames_that_keep_the_samples_are_refused(layer):
    with pytest.raises(hs.FrameError, match="keeps n: no process needs what another one measured"):
        layer()(torch.randn(2, 4, 3, 3))


def test_without_torch_distributed_it_is_the_inner_source_bit_for_bit():
    x = torch.randn(5, 4, 3, 3) + 2
    plain, synced = (hs.nn.BatchNorm2d(4, source=source) for source in (hs.Renorm(), hs.Synced(hs.Renorm())))
    for _ in range(3):
        assert torch.equal(plain(x), synced(x))
    for key, value in plain.state_dict().items():
        assert torch.equal(synced.state_dict()[key], value)


def test_a_group_is_kept_by_its_name_so_that_layers_can_be_copied_and_pickled():
    source = hs.Synced(hs.Renorm(), Group())
    assert source.group == "7"
    assert pickle.loads(pickle.dumps(source)) == copy.deepcopy(source) == source
    with pytest.raises(ValueError, match=re.escape("group=-100 is no process group that this process belongs to")):
        hs.Synced(group=-100)


def test_a_drift_says_which_layer_is_how_far_off():
    assert str(hs.Drift("down1.1", "BatchNorm2d", 0.25, 2.0)) == (
        "down1.1 (BatchNorm2d): mean off by 0.25 std, var by 2 times"
    )
    assert hs.drift(hs.nn.BatchNorm2d(3)) == (hs.Drift("", "BatchNorm2d", 0.0, 1.0),)
    with pytest.raises(ValueError, match="no layer of this model has running statistics"):
        hs.pool(nn.Linear(2, 2))
