"""Odd arguments to tools: one sentence, from our own lines, not from below. Layers have theirs in test_inputs."""

import math
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import homeostat as hs
from homeostat import cli, pixels
from homeostat import nn as H
from homeostat.nn.symmetry import assert_equivariant
from homeostat.styling import Basis, restyled

NAN, INF = math.nan, math.inf
X = np.array([-1.0, 1.0])
T = torch.randn(4, 6, 5, 5, generator=torch.Generator().manual_seed(0))
PICTURE = np.full((3, 16, 16), 0.5)
TURN = lambda x: torch.rot90(x, 1, (-2, -1))  # noqa: E731
NET = nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)).eval()
LINE = (1.0, 0.0)


def tax(one=X, other=X, ideal_one=LINE, ideal_other=(3.0, 1.0), **more):
    return hs.sharing_tax(one, other, ideal_one, ideal_other, **more)


def residual(f=None, norm=None, *args, **kwargs):
    return H.Residual(f or nn.Identity(), norm or H.LayerNorm(5), *args, **kwargs)


def style(reference=T, content=T, net=NET):
    return hs.restyle(net, content, reference)


WHOLE = "give a whole number of at least"
NOISE = [
    *((f"m={m!r}", lambda m=m: hs.expected_noise(m), "share a statistic: give a finite number above 0")
      for m in ("3", -1, 0, NAN, INF, None, True, [3], 10**400, 1j)),
    *((f"channels={n!r}", lambda n=n: hs.groups_for(n), f"{WHOLE} 1") for n in (True, 2.0, "8", None, 0, -4, NAN)),
    ("spatial=True", lambda: hs.groups_for(8, True), f"spatial=True: {WHOLE} 1"),
    ("batch=0", lambda: hs.groups_for(8, 1, 0), f"batch=0: {WHOLE} 1"),
    *((f"budget={b!r}", lambda b=b: hs.groups_for(8, budget=b), "is the relative error allowed: give a number above 0")
      for b in (0, NAN, "0.1", None, True)),
    ("an empty modality", lambda: tax(other=np.zeros(0)), "other= is empty: give the finite numbers"),
    *((f"a modality of {x!r}", lambda x=x: tax(x), "one= has values that are no numbers, or beyond 1e150")
      for x in ([NAN, 1.0], "abc", None, [1e200], ["a", "b"], [[1.0], [1.0, 2.0]])),
    *((f"weights={w!r}", lambda w=w: tax(weights=w), "how much each modality counts: give two numbers of at least 0")
      for w in ((NAN, 1), (1,), (0, 0), (-1, 2), "ab", None, (INF, 1), 5, ("a", "b"))),
    *((f"a line of {v!r}", lambda v=v: tax(ideal_one=v), "is the line this modality would have alone: give two numbers")
      for v in (1, "ab", (NAN, 0), (1, 2, 3), None)),
    *((f"drift={d!r}, noise={n!r}", lambda d=d, n=n: hs.optimal_momentum(d, n), "are variances: give finite numbers")
      for d, n in ((-1, 1), (0, 0), (NAN, 1), (1, INF), ("1", "2"), (None, 1), (True, 1), (np.array([-1.0, 1]), 1.0))),
]  # fmt: skip

CHOICES = [
    *((f"task={t!r}", lambda t=t: hs.choose(t), "is none of images, ") for t in (None, 3, ["images"], "Images")),
    *((f"{name}={n!r}", lambda name=name, n=n: hs.choose("images", **{name: n}), f"{name}={n!r}: {WHOLE}")
      for name, n in (("batch", -1), ("batch", 2.0), ("batch", True), ("ranks", 0), ("spatial", "3"), ("domains", -1))),
    *((f"blocks={b!r}", lambda b=b: hs.choose("modalities", blocks=b), "blocks")
      for b in (5, "ab", (), (0, 3), (True,))),
    ("blocks beside channels", lambda: hs.choose("modalities", channels=9, blocks=(3, 5)), "8, not to channels=9"),
    ("a modality of one", lambda: hs.choose("modalities", channels=1), "one feature minus its own mean is 0"),
    ("blocks of one", lambda: hs.choose("modalities", blocks=(1, 5)), "one feature minus its own mean is 0"),
    ("layout='nchw'", lambda: hs.choose("images", layout="nchw"), "is none of channels_first, channels_last"),
    ("tokens first", lambda: hs.choose("language", layout="channels_first"), "in language features are the last axis"),
    ("shape=8", lambda: hs.choose("images", shape=8), "shape=8: give whole numbers of at least 1"),
    ("shape and channels", lambda: hs.choose("images", shape=(8, 5), channels=8), "says channels too: give one or the"),
    ("an uneven orbit", lambda: hs.choose("symmetry", orbit=5), "64 channels are no whole number of orbits of 5"),
]  # fmt: skip

EQUIVARIANCE = [
    ("no action", lambda: assert_equivariant(H.OrbitNorm(2, 3), [], T), "so nothing would be tested"),
    ("a spent generator", lambda: assert_equivariant(H.OrbitNorm(2, 3), iter(()), T), "actions are empty"),
    ("actions=None", lambda: assert_equivariant(H.OrbitNorm(2, 3), None, T), "actions[0]=None cannot be called"),
    ("actions=[1]", lambda: assert_equivariant(H.OrbitNorm(2, 3), [1], T), "actions[0]=1 cannot be called"),
    ("an action that rests", lambda: assert_equivariant(H.OrbitNorm(2, 3), lambda x: x, T), "no action moves x"),
    ("an x that rests", lambda: assert_equivariant(H.LayerNorm(5), TURN, torch.ones(4, 6, 5, 5)), "no action moves x"),
    *((f"x {kind}", lambda x=x: assert_equivariant(H.LayerNorm(5), TURN, x), "give x, a tensor with some, all of them")
      for kind, x in (("of NumPy", T.numpy()), ("NaN", T * NAN), ("empty", T[:0]), ("None", None))),
    *((f"tolerance={t!r}", lambda t=t: assert_equivariant(H.LayerNorm(5), TURN, T, t), "give a finite number of at")
      for t in (NAN, -1, "1", INF)),
    ("module=None", lambda: assert_equivariant(None, TURN, T), "module=None cannot be called: give a layer"),
    ("a module's class", lambda: assert_equivariant(H.PONO, TURN, T), "PONO is a class: make one of it, PONO(...)"),
    ("a module of two", lambda: assert_equivariant(H.PONO(), TURN, T), "gives a tuple: pick one by a lambda"),
    ("a pooling module", lambda: assert_equivariant(lambda x: x.mean(3), TURN, T[:3]), "give actions that act on both"),
]  # fmt: skip

PLACES = [
    ("norm=None", lambda: H.Residual(nn.Identity(), None), "norm=None cannot be called: give a layer or a function"),
    ("a norm's class", lambda: H.Residual(nn.Identity(), H.LayerNorm), "LayerNorm is a class: make one of it"),
    ("norm='layer'", lambda: residual(norm="layer"), "norm='layer' cannot be called"),
    ("a pair with None", lambda: residual(None, (H.LayerNorm(5), None), "peri"), "norm=None cannot be called"),
    ("norms in threes", lambda: residual(None, (H.LayerNorm(5),) * 3, "peri"), "norm holds 3 layers: a pair is of two"),
    ("f=3", lambda: residual(3), "f=3 cannot be called"),
    ("a branch's class", lambda: residual(nn.Identity), "Identity is a class: make one of it"),
    ("a branch in threes", lambda: residual((abs,) * 3, None, "sub"), "f holds 3 layers: a pair is of two"),
    *((f"placement={p!r}", lambda p=p: residual(placement=p), "is none of pre, post, deep, sandwich, peri, sub")
      for p in ("around", None, ["pre"])),
    *((f"scale={s!r}", lambda s=s: residual(scale=s), "give a finite number, a parameter, or a layer such as")
      for s in ("0.5", None, NAN, [1.0], True, np.ones(5))),
    ("a scale's class", lambda: residual(scale=H.ReZero), "scale=ReZero is a class"),
    *((f"branches={n!r}", lambda n=n: residual(placement="deep", branches=n), f"{WHOLE} 1")
      for n in (2.5, "4", True, 0)),
    *((f"initial_gain{a}", lambda a=a: H.initial_gain(*a), said)
      for a, said in ((("deep", 0), f"{WHOLE} 1"), (("sub", 1), f"{WHOLE} 2"), (("around", 3), "is none of pre"))),
    ("another width", lambda: residual(nn.Linear(5, 1))(T), "gives [4, 6, 5, 1] for a stream of [4, 6, 5, 5]"),
    ("a branch of two", lambda: residual(lambda x: (x, x))(T), "the branch gives a tuple, and a stream takes a tensor"),
]  # fmt: skip

COUPLINGS = [
    *((f"norm={n!r}", lambda n=n: hs.coupling(n, T), "cannot be called") for n in (None, "batch")),
    ("a layer's class", lambda: hs.coupling(nn.LayerNorm, T), "LayerNorm is a class: make one of it"),
    ("a lazy layer", lambda: hs.coupling(H.LazyBatchNorm2d(), T), "coupling: LazyBatchNorm2d has no size yet: call it"),
    *((f"x {kind}", lambda x=x: hs.coupling(H.LayerNorm(5), x), "follows gradients: give x, a torch tensor of numbers")
      for kind, x in (("NumPy's", T.numpy()), ("a list", [1.0]), ("empty", T[:0]), ("complex", T + 1j))),
    ("a single number", lambda: hs.coupling(nn.Identity(), torch.tensor(1.0)), "give x, a torch tensor of numbers"),
    ("axes=None", lambda: hs.coupling(H.LayerNorm(5), T, None), 'axes=None: give names in a text, as in "n c h w"'),
    ("an axis named twice", lambda: hs.coupling(H.LayerNorm(5), T, "n n h w"), 'axes="n n h w" names 3 axes; x has 4'),
    ("an unknown axis", lambda: hs.coupling(H.LayerNorm(5), T, "n c h w").groups("z"), "is none of n, c, h, w"),
    ("a detached y", lambda: hs.coupling(lambda x: x.detach(), T), "no gradient leads from y back to x"),
    ("an infinite slope", lambda: hs.coupling(lambda x: x.abs().sqrt(), T * 0), "the gradient has values that are not"),
    ("a layer of two", lambda: hs.coupling(H.PONO(), T), "the norm gives a tuple: pick one by a lambda"),
]  # fmt: skip

IDENTITIES = [
    ("norm=None", lambda: hs.identity_on(None, [T]), "norm=None cannot be called"),
    ("a norm's class", lambda: hs.identity_on(H.BatchNorm2d, [T]), "BatchNorm2d is a class: make one of it"),
    ("torch's norm", lambda: hs.identity_on(nn.BatchNorm2d(6), [T]), "homeostat.adopt makes torch's ours"),
    ("a lazy norm", lambda: hs.identity_on(H.LazyBatchNorm2d(), [T]), "identity_on: LazyBatchNorm2d has no size yet"),
    *((f"batches={b!r:.9}", lambda b=b: hs.identity_on(H.BatchNorm2d(6), b), "give several tensors, [x] for one")
      for b in (T, None, 3, "ab", {"x": T})),
    ("no batches", lambda: hs.identity_on(H.BatchNorm2d(6), iter(())), "identity_on needs at least one batch"),
    *((f"a batch that is {kind}", lambda b=b: hs.identity_on(H.BatchNorm2d(6), [b]), "each is a tensor with values")
      for kind, b in (("of NumPy", T.numpy()), ("a pair", (T, 0)), ("empty", T[:0]), ("None", None))),
    ("wanted=3", lambda: hs.identity_on(H.BatchNorm2d(6), [T], 3), "wanted=3 cannot be called"),
    ("wanted narrower", lambda: hs.identity_on(H.BatchNorm2d(6), [T], lambda x: x[:, :2]), "wanted(x) is [4, 2, 5, 5]"),
    ("wanted NumPy's", lambda: hs.identity_on(H.BatchNorm2d(6), [T], lambda x: x.numpy()), "wanted(x) is <ndarray>"),
    ("a row alone", lambda: hs.identity_on(H.BatchNorm1d(6), [T[:1, :, 0, 0]]), "or a single value per statistic"),
]  # fmt: skip

STYLES = [
    *((f"net={kind}", lambda n=n: style(net=n), "takes a torch.nn.Module; this is")
      for kind, n in (("None", None), ("f", abs))),
    *((f"content={kind}", lambda c=c: style(content=c), "give a tensor, an input of the network")
      for kind, c in (("None", None), ("NumPy's", T.numpy()))),
    *((f"reference={kind}", lambda r=r: style(r), "give a tensor, an input of the network")
      for kind, r in (("None", None), ("a list", [T]))),
    ("reference={}", lambda: style({}), "no style for the norm '1'; it has none"),
    ("styles of numbers", lambda: style({"1": 3}), "reference['1'] is no Moments [sample, channel]"),
    ("three samples for four", lambda: style(T[:3]), "3 samples of 4 channels, and the content 4 of 4: give 1 sample"),
    ("styles of other channels", lambda: style({"1": hs.measure(T, "n c ... -> n c")}), "of 6 channels, and"),
    ("nowhere to put a style", lambda: style({"1": hs.measure(T, "n c ... -> n c")}, net=NET[:1]), "has no norm"),
    *((f"{name} {kind}", lambda p=p: restyled(*p), f"{name} is {shape}: give a picture [3, h, w]")
      for name, kind, p, shape in (
          ("content", "of rank 2", (PICTURE[0], PICTURE), "[16, 16]"),
          ("style", "of one channel", (PICTURE, PICTURE[:1]), "[1, 16, 16]"),
          ("content", "empty", (PICTURE[:, :0], PICTURE), "[3, 0, 16]"),
          ("content", "NaN", (PICTURE * NAN, PICTURE), "[3, 16, 16]"),
          ("content", "None", (None, PICTURE), "[]"))),
    *((f"strength={s!r}", lambda s=s: restyled(PICTURE, PICTURE, s), "is a share of the way to the style, from 0 to 1")
      for s in ("1", None, True, NAN)),
    ("basis=3", lambda: restyled(PICTURE, PICTURE, basis=3), "basis=3: give a Basis(scales, orientations)"),
    *((f"Basis{a}", lambda a=a: Basis(*a), WHOLE) for a in ((2.5,), (-1,), (True,), ("2",), (2, 0), (2, 1.5))),
    ("a NaN picture", lambda: pixels.write("x.png", pixels.Picture(PICTURE * NAN)), "x.png is not written"),
]  # fmt: skip

RENORMS = [
    *((f"schedule={s!r}", lambda s=s: hs.Renorm(schedule=s), "give rows (step, r_max, d_max), steps rising from 0 on")
      for s in (None, 5, "abc", (1, 2, 3), ((1, 2),), ((0, 1, 0), (0, 2, 1)), ((0, 1, 0), (9, NAN, 1)), ((-5, 1, 0),),
                (("a", 1, 0),), ((0, 0.5, 0),), ((0, 1, 0), (9, INF, INF)), {1: 2}, ((0, 1, 0), (1, 2)))),
    *((f"{name}={v!r}", lambda name=name, v=v: hs.Renorm(**{name: v}), "must be at least 1 and d_max")
      for name in ("r_max", "d_max") for v in ("3", None, NAN, -1)),
]  # fmt: skip

TABLE = [*NOISE, *CHOICES, *EQUIVARIANCE, *PLACES, *COUPLINGS, *IDENTITIES, *STYLES, *RENORMS]
OURS = Path(hs.__file__).parent


@pytest.mark.parametrize(("call", "said"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_an_odd_argument_is_refused_in_one_sentence_from_our_own_lines(call, said):
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    raised_in = Path(traceback.extract_tb(caught.value.__traceback__)[-1].filename)
    assert raised_in.is_relative_to(OURS), raised_in


def test_numpys_whole_numbers_are_whole_and_a_list_of_rows_is_a_schedule():
    assert hs.groups_for(np.int64(64), np.int32(49), budget=np.float32(0.1)) == hs.groups_for(64, 49)
    assert hs.choose("images", batch=np.int64(2)) == hs.choose("images", batch=2)
    assert hs.expected_noise(torch.tensor(129.0)) == hs.expected_noise(129)
    assert hs.Renorm(schedule=[[0, 1.0, 0.0], [9, 3.0, 5.0]]) == hs.Renorm(schedule=((0, 1.0, 0.0), (9, 3.0, 5.0)))
    hash(hs.Renorm(schedule=[[0, 1.0, 0.0]]))


def test_batches_may_come_from_a_generator_and_one_action_alone():
    torch.manual_seed(0)
    data = [torch.randn(8, 6, 5, 5) * 3 + 1 for _ in range(3)]
    assert hs.identity_on(H.BatchNorm2d(6), (x for x in data)) < 1e-6
    norm = H.OrbitNorm(2, 3)
    assert assert_equivariant(norm, TURN, T) < 1e-6
    assert norm.num_batches_tracked == 0  # looked at, not trained


def test_what_is_wanted_of_a_layer_leaves_its_memory_as_it_was():
    old = H.BatchNorm2d(6)
    hs.identity_on(H.BatchNorm2d(6), [T], old)
    assert old.num_batches_tracked == 0


def test_a_plain_tensor_as_a_scale_moves_with_the_block():
    block = H.Residual(nn.Identity(), H.LayerNorm(5), scale=torch.tensor(0.5)).double()
    assert block.scale.dtype is torch.float64
    assert "scale" not in block.state_dict()


def test_coupling_may_be_asked_for_in_inference_mode():
    with torch.inference_mode():
        assert hs.coupling(H.LayerNorm(5), torch.randn(2, 5)).kept == ("axis0",)


# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    "asked",
    [
        "",
        "soup",
        "choose",
        "choose soup",
        "choose images soup",
        "choose images --batch",
        "choose images --batch x",
        "choose images --batch 2.5",
        "choose images --batch -1",
        "choose images --ranks 0",
        "choose images --layout nchw",
        "choose images --shape",
        "choose images --shape 8 0",
        "choose images --spatial 1" + "0" * 400,
        "choose images --domains 1" + "0" * 400,
        "choose images --soup",
        "choose modalities --blocks 0",
        "choose symmetry --orbit 7",
        "style",
        "style a",
        "style a b --strength x",
        "style a b --strength nan",
        "style a b --scales x",
    ],
)
def test_a_bad_command_ends_with_2_and_one_line(capsys, asked):
    try:
        code = cli.main(asked.split())
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr()
    assert code == 2
    assert said.out == ""
    assert said.err.startswith("homeostat")
    assert said.err.count("\n") == 1


def test_a_task_of_two_words_needs_no_quotes(capsys):
    assert cli.main("choose vision transformer --channels 8".split()) == 0
    assert capsys.readouterr().out.startswith("hs.nn.LayerNorm(8)")
