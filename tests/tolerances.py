"""How far a result may be from the float64 oracle, by the dtype that x is given in. Every number has its reason.

A tolerance is a share of the largest value the oracle gives, and of 1 where all are smaller. `TOL` takes a dtype of any
library, or its name: `TOL[torch.float32]`, `TOL[np.float32]`, `TOL["float32"]`.
"""

import numpy as np


class Table(dict):
    """Numbers by name of dtype; a dtype is looked up by its name."""

    def __missing__(self, dtype):
        return self[name_of(dtype)]


TOL = Table(
    # 450 units of 2^-52. The oracle rounds as often as we do: over a thousand values both are off by a few units, and
    # a division by the spread may make ten of each.
    float64=1e-13,
    # 17 units of 2^-23: centre, spread, product and gain round once each, sums over a thousand values a few times.
    float32=2e-6,
    # One unit of the last place. Computed in float32, so nothing rounds but y itself, by half a unit; a gradient is
    # rounded once more.
    bfloat16=2.0**-7,
    float16=2.0**-10,
)

# At mean 1e4 and spread 1. The naive mean^2 route is off by 1 and more, a centre rounded to float32 by 5e-4. What is
# left in float32 is that of spread 1 anywhere; float64 loses as many digits of x as its mean is larger than its spread.
TOL_AT_MEAN_1E4 = Table(float64=1e-11, float32=5e-6)


def name_of(dtype):
    """Of torch.float32, np.float32, np.dtype("float32") and jax.numpy.float32: "float32"."""
    return getattr(dtype, "__name__", str(dtype)).removeprefix("torch.")


def assert_close(got, want, dtype, table=TOL, times=1.0):
    """`got` is `want` within `times` the tolerance of dtype."""
    got, want = (np.asarray(a, np.float64) for a in (got, want))
    assert got.shape == want.shape
    size = max(1.0, np.abs(want).max(initial=0.0))
    np.testing.assert_allclose(got, want, rtol=0, atol=times * table[dtype] * size)
