"""Reading: what one frame measured on one tensor; and the two verbs that make it, `measure` and `normalize`.

>>> import numpy as np
>>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
>>> normalize(x, "cell gene -> gene", eps=0.0)
array([[-1., -1.],
       [ 1.,  1.]])
>>> y, reading = normalize(x, "cell gene -> gene", eps=0.0, return_reading=True)
>>> reading.inverse(y)
array([[ 1., 10.],
       [ 3., 30.]])
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import numpy as np

from homeostat import ops
from homeostat.affine import Affine
from homeostat.arrays import Array, Numpy, backend_of, to_numpy
from homeostat.door import Bound, bind, check_center, check_dtype, check_eps, check_pool, check_where
from homeostat.frame import Frame, ShapeError
from homeostat.kernels import reference
from homeostat.kernels.groups import groups_of
from homeostat.kernels.reference import Job
from homeostat.moments import Moments
from homeostat.plan import plan_for
from homeostat.trust import THROUGH


def measure(
    x: Array, pattern: str | Frame, *, center: bool = True, where: Array | None = None, **given: Any
) -> Moments:
    """The moments of each group, one entry per group in keep order.

    >>> import numpy as np
    >>> measure(np.array([[1.0, 10.0], [3.0, 30.0]]), "cell gene -> gene").mean
    array([ 2., 20.])
    """
    bound = bind(x, pattern, given)
    check_center(center)
    check_where(where, x)
    return ops.measure(x, Job(bound.plan, None, bound.codes, THROUGH, center=center), where)


@overload
def normalize(
    x: Array,
    pattern: str | Frame,
    *,
    eps: float | Literal["auto"] = ...,
    center: bool = ...,
    where: Array | None = ...,
    return_reading: Literal[False] = ...,
    **given: Any,
) -> Array: ...


@overload
def normalize(
    x: Array,
    pattern: str | Frame,
    *,
    eps: float | Literal["auto"] = ...,
    center: bool = ...,
    where: Array | None = ...,
    return_reading: Literal[True],
    **given: Any,
) -> tuple[Array, Reading]: ...


def normalize(
    x: Array,
    pattern: str | Frame,
    *,
    eps: float | Literal["auto"] = 1e-5,
    center: bool = True,
    where: Array | None = None,
    return_reading: bool = False,
    **given: Any,
) -> Any:
    """(x - mean) / sqrt(var + eps), the statistics shared as the pattern says.

    `center=False` divides by the root mean square instead. `where` (a mask, or weights >= 0) decides who is
    measured; everyone is normalized. `eps="auto"` follows the size of x and the limits of its dtype. Sizes of split
    axes and labels come as keywords: `normalize(x, "n (g c) ... -> n g", g=32)`,
    `normalize(X, "cell gene -> lab[cell] gene", lab=labels)`.
    """
    bound = bind(x, pattern, given)
    check_center(center)
    check_where(where, x)
    eps = check_eps(eps)  # type: ignore[assignment]
    if center:
        check_pool(bound, where)
    job = Job(bound.plan, None, bound.codes, THROUGH, eps, center)
    y, moments = ops.normalize(x, None, None, where, job, wanted=return_reading)
    if not return_reading:
        return y
    assert moments is not None
    if getattr(y, "requires_grad", False) and not moments.mean.requires_grad:
        moments = ops.measure(x, job, where)  # kernels hand out numbers; what is done with a reading has a gradient too
    return y, Reading(bound.frame, moments, _affine(x, job, moments, where), bound)


@dataclass(frozen=True, eq=False, slots=True)
class Reading:
    """Frame, moments and the affine made of them. It applies to other tensors and undoes itself.

    Labels and sizes need not be repeated for a tensor of the same shape; for another, pass them as to `normalize`.
    """

    frame: Frame
    moments: Moments
    affine: Affine
    bound: Bound

    @property
    def mean(self) -> Array:
        """The mean of each group, in keep order: a feature in its own right."""
        return self.moments.mean

    @property
    def std(self) -> Array:
        return self.moments.std()

    def __call__(self, x: Array, **given: Any) -> Array:
        """Normalize another tensor by what was measured on the first."""
        return self._apply(self.affine, x, given)

    def inverse(self, y: Array, **given: Any) -> Array:
        """Put back what normalizing took away."""
        return self._apply(self.affine.inverse(), y, given)

    def _apply(self, affine: Affine, x: Array, given: dict[str, Any]) -> Array:
        b = backend_of(x)
        check_dtype(b, x)
        bound = self._rebind(x, given)
        g = groups_of(b, bound.plan, bound.codes)
        if tuple(bound.plan.groups) != tuple(self.affine.s.shape):
            raise ShapeError(
                f'"{self.frame}" was measured with groups {tuple(self.affine.s.shape)}; '
                f"this tensor has {tuple(bound.plan.groups)}."
            )
        z = b.reshape(x, bound.plan.shape)
        wide = b.group_dtype(x)  # the group's digits, not x's: a round trip must come back
        found = (_carried(b, part) for part in (affine.c, affine.s, affine.t))
        parts = [g.spread(g.inner(b.asarray(part, x, wide))) for part in found]
        y = (b.cast(z, wide) - parts[0]) * parts[1] + parts[2]
        return b.cast(b.reshape(y, x.shape), x.dtype)

    def _rebind(self, x: Array, given: dict[str, Any]) -> Bound:
        if not given and self.frame.labels:
            plan = plan_for(self.frame, tuple(x.shape), self.bound.sizes, self._counts())
            if plan.shape == self.bound.plan.shape:
                b = backend_of(x)
                return replace(self.bound, codes=tuple(b.codes(_carried(b, code), x) for code in self.bound.codes))
            raise ShapeError(
                f'"{self.frame}" was measured on {self.bound.plan.shape}; for this tensor, {tuple(x.shape)}, pass '
                f"{', '.join(label.name + '=' for label in self.frame.labels)} again."
            )
        return bind(x, self.frame, {**self.bound.sizes, **given}, self.bound.levels)

    def _counts(self) -> dict[str, int]:
        return dict(zip((label.name for label in self.frame.labels), self.bound.plan.counts, strict=True))


def _carried(b: Numpy, values: Array) -> Array:
    """What was measured in another library than x's, in an array both know."""
    if not isinstance(values, np.generic) and backend_of(values) is b:
        return values
    return np.array(to_numpy(values))  # a copy, because torch takes no array that it may not write to


def _affine(x: Array, job: Job, moments: Moments, where: Array | None) -> Affine:
    """The affine that normalizing applied: centre, 1 / sqrt(var + eps), and what the centre lost to rounding."""
    b, eps = backend_of(x), job.eps
    some = moments.count + (moments.count == 0)
    var = moments.m2 / some
    if eps == "auto":
        relative, floor = reference.auto_terms(b, x)
        eps = b.maximum((var + moments.mean**2) * relative, floor)
    r = 1.0 / b.sqrt(var + eps)
    if not isinstance(moments.count, float):
        r = b.where(moments.count > 0, r, 1.0)
    return Affine(moments.mean, r, -r * _lost(x, job, moments.mean, where))


def _lost(x: Array, job: Job, mean: Array, where: Array | None) -> Array:
    """True mean - mean. At mean 1e4 a float32 centre is off by up to 5e-4 standard deviations of 1."""
    b = backend_of(x)
    if not job.center or b.finfo(mean).bits >= 64:
        return 0.0 * mean
    g = groups_of(b, job.plan, job.codes)
    d = b.reshape(b.cast(x, mean.dtype), job.plan.shape) - g.spread(g.inner(mean))
    return ops.measure(b.reshape(d, x.shape), job, where).mean
