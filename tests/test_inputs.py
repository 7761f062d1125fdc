"""Odd arguments to layers with arithmetic of their own: one sentence, from our own lines, not from below.

Frames, labels, arrays and presets have theirs in test_errors, tools in test_arguments.
"""

import math
import traceback
from pathlib import Path

import pytest
import torch
from torch import nn

import homeostat as hs
from homeostat import nn as H

NAN, INF = math.nan, math.inf
T = torch.randn(4, 6, 5, 5, generator=torch.Generator().manual_seed(0))
NODES, GRAPH = T[:, :, 0, 0], torch.tensor([0, 0, 1, 1])
SERIES = T[0]
WHOLE = "give a whole number of at least"

# what it is, how it is made, an input it was not made for
LAYERS = [
    ("DyT", H.DyT(8), T, "DyT was made for length 8 of axis -1; this tensor is [4, 6, 5, 5]"),
    ("DyT of one", H.DyT(1), T, "made for length 1"),
    ("Derf", H.Derf(8), T, "Derf was made for length 8"),
    ("LayerScale", H.LayerScale(8), T, "LayerScale was made for length 8"),
    ("ReZero", H.ReZero(), T.int(), "ReZero takes fractions; x is torch.int32: pass x.float()"),
    ("HeadScale", H.HeadScale(4), T, "HeadScale was made for length 4 of axis -3"),
    ("HeadScale without heads", H.HeadScale(5), T[0, 0], "HeadScale was made for length 5 of axis -3"),
    ("TLU", H.TLU(1), T, "TLU was made for length 1 of axis 1"),
    ("GRN", H.GRN(6), T, "GRN was made for length 6 of axis -1"),
    ("EvoNormS0", H.EvoNormS0(2, 4), T, "EvoNormS0 was made for length 4 of axis 1"),
    ("LRN", H.LRN(3), T[0, 0, 0], "LRN was made for [n, c, ...]"),
    ("LRN of integers", H.LRN(3), T.int(), "LRN takes fractions"),
    ("L2Norm", H.L2Norm(), T.numpy(), "L2Norm takes a torch tensor; x is <ndarray>"),
    ("PONO", H.PONO(), [1.0], "PONO takes a torch tensor; x is [1.0]"),
    ("PowerNorm", H.PowerNorm(1), T, "PowerNorm was made for length 1 of axis 1"),
    ("PowerNorm in evaluation", H.PowerNorm(1).eval(), T, "PowerNorm was made for length 1 of axis 1"),
    ("OnlineNorm", H.OnlineNorm(5), T, "OnlineNorm was made for length 5 of axis 1"),
    ("SectorNorm", H.SectorNorm((2, 2)), T, "2 sectors take 4 features; x has 5"),
    ("Reversible", H.Reversible(3), SERIES, "Reversible was made for length 3 of axis -1"),
    ("DAIN", H.DAIN(3), SERIES, "DAIN was made for length 3 of axis -1"),
    ("GraphSizeNorm", H.GraphSizeNorm(), T[0, :, 0, 0], "GraphSizeNorm takes nodes [n, d]; this tensor is [6]"),
    ("DiffGroupNorm", H.DiffGroupNorm(4, 2), NODES, "DiffGroupNorm was made for length 4"),
    ("DiffGroupNorm of pictures", H.DiffGroupNorm(5, 2), T, "DiffGroupNorm takes nodes [n, d]"),
]

MADE = [
    *((f"{kind.__name__}({d!r})", lambda kind=kind, d=d: kind(d), WHOLE)
      for kind in (H.DyT, H.Derf, H.LayerScale, H.HeadScale, H.TLU, H.GRN, H.DAIN, H.PowerNorm, H.OnlineNorm, H.LRN,
                   H.Reversible)
      for d in (0, "6", 6.0, True)),
    *((f"{kind.__name__} of {b!r}", lambda kind=kind, b=b: kind(b), "give whole numbers of at least 1")
      for kind in (H.ModalityNorm, H.SectorNorm) for b in (6, "ab", (), None)),
    *((f"{kind.__name__} of {b!r}", lambda kind=kind, b=b: kind(b), f"{WHOLE} 1")
      for kind in (H.ModalityNorm, H.SectorNorm) for b in ((0, 3), (2.0, 4.0), (True, 5))),
    ("a modality of one", lambda: H.ModalityNorm((1, 5)), "blocks=(1, 5): one feature minus its own mean is 0"),
    ("SectorNorm by text", lambda: H.SectorNorm({"a": "3"}), f"{WHOLE} 1"),
    *((f"{kind.__name__}(momentum={m!r})", lambda kind=kind, m=m: kind(6, m), "give a number from 0 to 1")
      for kind in (H.PowerNorm, H.OnlineNorm) for m in (2.0, -1, NAN, None, "a")),
    *((f"{kind.__name__}(eps={e!r})", lambda kind=kind, e=e: kind(6, eps=e), "give a finite number of at least 0")
      for kind in (H.PowerNorm, H.OnlineNorm, H.GRN, H.DAIN) for e in (-1, "auto", NAN)),
    ("warmup=-1", lambda: H.PowerNorm(6, 0.1, -1), f"warmup=-1: {WHOLE} 0"),
    *((f"alpha={a!r}", lambda a=a: H.DyT(6, a), "give a finite number") for a in ("a", None, NAN)),
    ("start='a'", lambda: H.LayerScale(6, "a"), "start='a': give a finite number"),
    *((f"Reversible(eps={e!r})", lambda e=e: H.Reversible(eps=e), 'neither a number >= 0 nor "auto"')
      for e in (-1, "x", None)),
    *((f"share={s!r}", lambda s=s: H.IBN(6, s), "share=") for s in (0, 1, 2, "a", -0.5, NAN)),
    *((f"p={p!r}", lambda p=p: H.NodeNorm(p), "give a finite number above 0") for p in (0, -1, "2", NAN, INF)),
    *((f"p of a row={p!r}", lambda p=p: H.PartialRMSNorm(6, p), "above 0 and at most 1") for p in (0, "a", NAN, 2)),
    ("uneven groups", lambda: H.EvoNormS0(4, 6), "groups=4 do not divide channels=6"),
    ("no groups", lambda: H.EvoNormS0(0, 6), f"groups=0: {WHOLE} 1"),
    ("PairNorm(scale='1')", lambda: H.PairNorm(6, "1"), "scale='1': give a finite number"),
    ("strength='a'", lambda: H.DiffGroupNorm(6, 3, "a"), "strength='a': give a finite number"),
    *((f"batch={kind}", lambda b=b: H.GraphNorm(6)(NODES, b), "batch is the graph of every node, 4 integers; this is")
      for kind, b in (("3", 3), ("text", "abc"), ("too short", GRAPH[:2]), ("two axes", GRAPH[:, None]),
                      ("a pair", (GRAPH, 2)))),
    ("fractions for graphs", lambda: H.GraphSizeNorm()(NODES, GRAPH.double()), "codes are integers"),
    ("no graph -1", lambda: H.GraphSizeNorm()(NODES, GRAPH - 1), "code -1 is not in 0.."),
    ("fewer messages", lambda: H.MessageNorm()(NODES, NODES[:2]), "message per node; x is [4, 6], message [2, 6]"),
    ("reading=None", lambda: H.Reversible().inverse(SERIES, None), "reading=None: give what came with y"),
    *((f"{f.__name__} of {kind}", lambda f=f, m=m: f(m), said)
      for f in (H.standardize_weight, H.normalize_weight, H.spectral_weight)
      for kind, m, said in (
          ("None", None, "None is no layer: give a torch.nn.Module"), ("a class", nn.Linear, "is no layer"),
          ("a relu", nn.ReLU(), "ReLU has no weight: give the name of one of its weights"),
          ("a lazy layer", nn.LazyLinear(4), "has no size yet: call the layer once first"))),
    *((f"{f.__name__} of a bias", lambda f=f: f(nn.Linear(5, 4), "bias"), "bias of Linear is not [outputs, inputs, .")
      for f in (H.standardize_weight, H.normalize_weight, H.spectral_weight)),
]  # fmt: skip

TABLE = [*MADE, *((name, lambda layer=layer, x=x: layer(x), said) for name, layer, x, said in LAYERS)]
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


@pytest.mark.parametrize("kind", [H.DyT, H.LayerScale])
def test_a_whole_number_is_a_number_to_start_from(kind):
    assert kind(5, 1)(T).dtype is torch.float32
