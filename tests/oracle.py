"""The oracle: what every norm must return, in closed form, in float64 and NumPy, independent of torch and the library.

    d = x - mean        v = mean(d^2)        r = 1 / sqrt(v + eps)        xhat = d r        y = xhat w + b

    g = dy w            dx = r (g - mean(g) - xhat mean(g xhat))          dw = sum(dy xhat)        db = sum(dy)

Two passes over x, so nothing cancels: torch.nn itself is no oracle everywhere. Its GroupNorm takes a variance in one
pass on channels_last inputs, which loses digits at a large mean in float64 too.
"""

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Answer:
    """y and the three gradients; `mean` and `var` (biased) of each group, and how many values each has."""

    y: np.ndarray
    dx: np.ndarray
    dw: np.ndarray
    db: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    count: int


def of(layer, x, dy):
    """What a layer with torch.nn's attributes must return for tensors x and dy."""
    kind = type(layer).__name__.removeprefix("Lazy").rstrip("123d")
    w, b = (float64(getattr(layer, name, None)) for name in ("weight", "bias"))
    eps = layer.eps
    if eps is None:  # RMSNorm's default: the spacing at 1 of the dtype that torch computes in
        eps = np.finfo(np.float64 if x.element_size() == 8 else np.float32).eps
    x, dy = float64(x), float64(dy)
    if kind == "BatchNorm":
        return batch(x, dy, w, b, eps, _fixed(layer))
    if kind == "InstanceNorm":
        if x.ndim < layer._get_no_batch_dim() + 1:
            return _first(instance(x[None], dy[None], w, b, eps, _fixed(layer)))
        return instance(x, dy, w, b, eps, _fixed(layer))
    if kind == "GroupNorm":
        return group(x, dy, w, b, eps, layer.num_groups)
    return {"LayerNorm": layer_norm, "RMSNorm": rms}[kind](x, dy, w, b, eps, len(layer.normalized_shape))


def batch(x, dy, w=None, b=None, eps=1e-5, fixed=None):
    """[n, c, ...], one statistic per channel; or the constants `fixed` = (mean, var), each [c]."""
    return _norm(x, dy, w, b, eps, pooled=_all_but(x, 1), gained=(1,), fixed=fixed)


def instance(x, dy, w=None, b=None, eps=1e-5, fixed=None):
    """[n, c, ...], one statistic per channel of every sample; constants are per channel."""
    return _norm(x, dy, w, b, eps, pooled=_all_but(x, 0, 1), gained=(1,), fixed=fixed)


def layer_norm(x, dy, w=None, b=None, eps=1e-5, axes=1):
    """One statistic over the last `axes` axes, one gain per position in them."""
    last = tuple(range(x.ndim - axes, x.ndim))
    return _norm(x, dy, w, b, eps, pooled=last, gained=last)


def rms(x, dy, w=None, b=None, eps=1e-5, axes=1):
    """As `layer_norm`, not centred."""
    last = tuple(range(x.ndim - axes, x.ndim))
    return _norm(x, dy, w, b, eps, pooled=last, gained=last, centred=False)


def group(x, dy, w=None, b=None, eps=1e-5, groups=1):
    """[n, c, ...], one statistic per `groups` consecutive shares of the channels of every sample."""
    n, c = x.shape[:2]
    split = (n, groups, c // groups, *x.shape[2:])
    w, b = (p if p is None else p.reshape(groups, c // groups) for p in (w, b))
    pooled = tuple(range(2, len(split)))
    found = _norm(x.reshape(split), dy.reshape(split), w, b, eps, pooled=pooled, gained=(1, 2))
    y, dx = (a.reshape(x.shape) for a in (found.y, found.dx))
    return Answer(y, dx, found.dw.reshape(c), found.db.reshape(c), found.mean, found.var, found.count)


def remembered(mean, var, answer, k):
    """Running statistics after one more batch: b <- (1 - k) b + k new, the variance unbiased, per channel."""
    new_mean, new_var = (_per_channel(part) for part in (answer.mean, answer.var))
    unbiased = new_var * answer.count / (answer.count - 1)
    return (1 - k) * mean + k * new_mean, (1 - k) * var + k * unbiased


def float64(t):
    """A tensor of any dtype, or None, as float64 values."""
    return None if t is None else t.detach().double().numpy()


def _fixed(layer):
    """The constants a layer trusts: its running statistics, in evaluation."""
    if layer.training or not layer.track_running_stats:
        return None
    return float64(layer.running_mean), float64(layer.running_var)


def _first(answer):
    """The answer for a single sample that was given without a batch axis."""
    return replace(answer, y=answer.y[0], dx=answer.dx[0])


def _norm(x, dy, w, b, eps, pooled, gained, centred=True, fixed=None):
    x, dy = (np.asarray(a, np.float64) for a in (x, dy))
    gain, shift = (_along(p, x.ndim, gained) for p in (w, b))
    if fixed is None:
        mean = x.mean(pooled, keepdims=True) if centred else np.zeros(())
        d = x - mean
        var = np.square(d).mean(pooled, keepdims=True)
    else:
        mean, var = (_along(part, x.ndim, gained) for part in fixed)
        d = x - mean
    r = 1 / np.sqrt(var + eps)
    xhat, g = d * r, dy if gain is None else dy * gain
    pull = 0.0
    if fixed is None:
        pull = xhat * (g * xhat).mean(pooled, keepdims=True)
        pull += g.mean(pooled, keepdims=True) if centred else 0.0
    y = xhat if gain is None else xhat * gain
    y = y if shift is None else y + shift
    others = _all_but(x, *gained)
    count = int(np.prod([x.shape[i] for i in pooled]))
    return Answer(y, r * (g - pull), (dy * xhat).sum(others), dy.sum(others), mean, var, count)


def _all_but(x, *kept):
    return tuple(i for i in range(x.ndim) if i not in kept)


def _along(p, rank, axes):
    """One value per position of `axes`, in a shape that broadcasts against x."""
    if p is None:
        return None
    p = np.asarray(p, np.float64)
    lengths = iter(p.shape)
    return p.reshape([next(lengths) if i in axes else 1 for i in range(rank)])


def _per_channel(part):
    """[1 or n, c, 1, ...] to [c]: the average over samples."""
    return part.mean(axis=tuple(i for i in range(part.ndim) if i != 1))
