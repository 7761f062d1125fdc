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

CHECKS = [
    (check.__name__, check)
    for check in (on_machines.torch_layers, on_machines.sharded, on_machines.compiled, on_machines.pooled)
]


@pytest.fixture(scope="module")
def answers():
    return values(together(4, on_ranks.answers, CHECKS, timeout=30))


@pytest.mark.parametrize("name", [name for name, _ in CHECKS])
def test_on_four_ranks(answers, name):
    assert "".join(answer.get(name, "not reached") for answer in answers) == ""


def test_other_processes_continue_from_a_checkpoint_bit_for_bit(tmp_path):
    want, got = (values(together(4, f, str(tmp_path / "saved"))) for f in (on_machines.saved, on_machines.resumed))
    for before, after in zip(want, got, strict=True):
        assert before.keys() == after.keys()
        for key, value in before.items():
            assert torch.equal(after[key], value), key


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


def test_what_cannot_be_shared_is_named():
    net = nn.ModuleDict({"parts": hs.nn.BatchNorm2d(4, source=hs.Ghost(2)), "lazy": hs.nn.LazyBatchNorm2d()})
    with pytest.warns(UserWarning, match=r"left 2 alone: parts: .*no parts.*; lazy: it has not seen an input yet"):
        hs.sync(net)
    assert net["parts"].source == hs.Ghost(2)


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
    class Group:
        group_name = "7"

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
