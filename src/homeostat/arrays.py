"""Arrays: the dozen verbs the reference needs, spoken by NumPy, JAX, Dask and torch.

One small class per library; the right one is found from the array itself, so a library is imported only by those
who already hold one of its arrays.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = Any  # an array of any of the four libraries


class Numpy:
    """NumPy spellings; the siblings below override what differs."""

    name = "numpy"
    module = "numpy"

    @property
    def xp(self) -> Any:
        """The library itself; whoever holds one of its arrays has imported it."""
        return sys.modules[self.module]

    # -- dtypes: x is given in one, worked on in another, its statistics kept in a third

    def work_dtype(self, x: Array) -> Any:
        """Sums of float16 and bfloat16 would drown in rounding; NumPy has no fast path to protect, so float64."""
        return np.float64

    def group_dtype(self, x: Array) -> Any:
        return np.float64

    def is_float(self, x: Array) -> bool:
        return bool(np.issubdtype(np.dtype(x.dtype), np.floating))

    def finfo(self, x: Array) -> Any:
        return np.finfo(x.dtype)

    def cast(self, x: Array, dtype: Any) -> Array:
        return x.astype(dtype, copy=False)

    # -- shape

    def reshape(self, x: Array, shape: Sequence[int]) -> Array:
        return self.xp.reshape(x, tuple(shape))

    def permute(self, x: Array, order: Sequence[int]) -> Array:
        return self.xp.transpose(x, tuple(order))

    def broadcast(self, x: Array, shape: Sequence[int]) -> Array:
        return self.xp.broadcast_to(x, tuple(shape))

    # -- arithmetic

    def sum(self, x: Array, axes: tuple[int, ...]) -> Array:
        return self.xp.sum(x, axis=axes, keepdims=True) if axes else x

    def amax(self, x: Array, axes: tuple[int, ...]) -> Array:
        return self.xp.max(x, axis=axes, keepdims=True) if axes else x

    def where(self, mask: Array, a: Any, b: Any) -> Array:
        return self.xp.where(mask, a, b)

    def fill(self, x: Array, mask: Array, value: float) -> Array:
        return self.xp.where(mask, x.dtype.type(value), x)

    def sqrt(self, x: Array) -> Array:
        return self.xp.sqrt(x)

    def maximum(self, x: Array, floor: Any) -> Array:
        return self.xp.maximum(x, floor)

    def exponent(self, x: Array) -> Array:
        """e with |x| in [2^(e-1), 2^e)."""
        return self.xp.frexp(x)[1]

    def ldexp(self, x: Array, e: Array) -> Array:
        """x 2^e, exactly; in two halves, because 2^e alone overflows float32 beyond 127."""
        half = e // 2
        with np.errstate(over="ignore"):  # the M2 of values near the largest is inf, and that is no news
            return self.xp.ldexp(self.xp.ldexp(x, half), e - half)

    def detach(self, x: Array) -> Array:
        return x

    def asarray(self, value: Any, x: Array, dtype: Any) -> Array:
        """`value` as an array beside x."""
        return self.xp.asarray(value, dtype=dtype)

    def ones(self, shape: Sequence[int], x: Array, dtype: Any) -> Array:
        return np.ones(tuple(shape), dtype)

    # -- keyed groups: rows of x [u, ...] belong to the group named by codes [u]

    def segment_sum(self, x: Array, codes: Array, n: int) -> Array:
        flat = x.reshape(x.shape[0], int(np.prod(x.shape[1:])))
        out = np.zeros((n, flat.shape[1]), flat.dtype)
        order = np.argsort(codes, kind="stable")  # reduceat wants each group's rows together
        sorted_codes = np.asarray(codes)[order]
        starts = np.flatnonzero(np.r_[True, sorted_codes[1:] != sorted_codes[:-1]]) if len(order) else order
        if len(starts):
            out[sorted_codes[starts]] = np.add.reduceat(flat[order], starts, axis=0)
        return out.reshape(n, *x.shape[1:])

    def segment_max(self, x: Array, codes: Array, n: int) -> Array:
        out = np.zeros((n, *x.shape[1:]), x.dtype)
        np.maximum.at(out, codes, x)
        return out

    def take(self, groups: Array, codes: Array) -> Array:
        return self.xp.take(groups, codes, axis=0)

    def codes(self, values: Array, x: Array) -> Array:
        return np.asarray(values)

    def places(self, n: int, x: Array) -> Array:
        """0, 1, ... n - 1, as codes."""
        return np.arange(n)


class Jax(Numpy):
    name = "jax"
    module = "jax.numpy"

    @property
    def jax(self) -> Any:
        return sys.modules["jax"]

    def work_dtype(self, x: Array) -> Any:
        return self.xp.float64 if x.dtype == "float64" else self.xp.float32

    def group_dtype(self, x: Array) -> Any:
        return self.jax.dtypes.canonicalize_dtype("float64")  # float32 unless jax_enable_x64

    def is_float(self, x: Array) -> bool:
        return bool(self.xp.issubdtype(x.dtype, self.xp.floating))  # counts bfloat16, which NumPy does not

    def finfo(self, x: Array) -> Any:
        return self.xp.finfo(x.dtype)

    def cast(self, x: Array, dtype: Any) -> Array:
        return x.astype(dtype)

    def ldexp(self, x: Array, e: Array) -> Array:
        return _times_power(self.xp, x, e)  # jnp.ldexp's own gradient is wrong where x is 0, NaN where denormal (0.10)

    def detach(self, x: Array) -> Array:
        return self.jax.lax.stop_gradient(x)

    def segment_sum(self, x: Array, codes: Array, n: int) -> Array:
        return self.jax.ops.segment_sum(x, codes, n)

    def segment_max(self, x: Array, codes: Array, n: int) -> Array:
        return self.xp.maximum(self.jax.ops.segment_max(x, codes, n), 0)

    def codes(self, values: Array, x: Array) -> Array:
        return self.xp.asarray(values)


class Dask(Numpy):
    """Lazy throughout: nothing here computes."""

    name = "dask"
    module = "dask.array"

    def cast(self, x: Array, dtype: Any) -> Array:
        return x.astype(dtype)

    # codes stay NumPy arrays throughout, so that any stretch of them is at hand

    def reshape(self, x: Array, shape: Sequence[int]) -> Array:
        return x.reshape(tuple(shape))

    def broadcast(self, x: Array, shape: Sequence[int]) -> Array:
        xp = np if isinstance(x, np.ndarray) else self.xp
        return xp.broadcast_to(x, tuple(shape))

    def take(self, groups: Array, codes: Array) -> Array:
        """In pieces of the size Dask likes: all rows at once need not fit into memory."""
        shape = (len(codes), *groups.shape[1:])
        rows = self.xp.core.normalize_chunks(("auto", *groups.chunks[1:]), shape, dtype=groups.dtype)[0]
        pieces, others = self.xp.from_array(codes, chunks=(rows,)), tuple(range(1, groups.ndim))
        return self.xp.blockwise(
            np.take,
            (0, *others),
            groups.rechunk({0: -1}),
            (-1, *others),
            pieces,
            (0,),
            axis=0,
            dtype=groups.dtype,
            concatenate=True,
        )

    def segment_sum(self, x: Array, codes: Array, n: int) -> Array:
        return self._segments(x, codes, n, Numpy().segment_sum).sum(axis=0)

    def segment_max(self, x: Array, codes: Array, n: int) -> Array:
        return self._segments(x, codes, n, Numpy().segment_max).max(axis=0)

    def _segments(self, x: Array, codes: Array, n: int, of_block: Any) -> Array:
        """One partial result per block of rows: rows never travel, only groups do."""
        parts, at = [], 0
        for i, rows in enumerate(x.chunks[0]):
            part = codes[at : at + rows]
            block = x.blocks[i]
            parts.append(block.map_blocks(of_block, part, n, chunks=((n,), *block.chunks[1:]), dtype=x.dtype))
            at += rows
        return self.xp.stack(parts)

    def codes(self, values: Array, x: Array) -> Array:
        return np.asarray(values)


class Torch(Numpy):
    name = "torch"
    module = "torch"

    def work_dtype(self, x: Array) -> Any:
        # float32 work stays float32: the mean is kept as hi + lo, which is as good and half the traffic
        return self.xp.float64 if x.dtype == self.xp.float64 else self.xp.float32

    def group_dtype(self, x: Array) -> Any:
        return self.xp.float32 if x.device.type == "mps" else self.xp.float64

    def is_float(self, x: Array) -> bool:
        return bool(x.dtype.is_floating_point)

    def finfo(self, x: Array) -> Any:
        return self.xp.finfo(x.dtype)

    def cast(self, x: Array, dtype: Any) -> Array:
        return x.to(dtype)

    def permute(self, x: Array, order: Sequence[int]) -> Array:
        return x.permute(tuple(order))

    def sum(self, x: Array, axes: tuple[int, ...]) -> Array:
        """In float64. Compiled, that is free; eager, it would copy x, so one run of memory is summed in float32 first.

        ATen cascades within one run of memory only: across two it adds one by one, and group norm over
        2 x 65536 channels_last values came out wrong by 4e-4 at mean 1e4.
        """
        wide = self.group_dtype(x)
        if not axes or x.dtype == wide or self.xp.compiler.is_compiling():
            return x.sum(dim=axes, keepdim=True, dtype=wide) if axes else x.to(wide)
        run = _longest_run(axes, x.shape, x.stride())
        rest = tuple(a for a in axes if a not in run)
        part = x.sum(dim=run, keepdim=True).to(wide)
        return part.sum(dim=rest, keepdim=True) if rest else part

    def amax(self, x: Array, axes: tuple[int, ...]) -> Array:
        return x.amax(dim=axes, keepdim=True) if axes else x

    def fill(self, x: Array, mask: Array, value: float) -> Array:
        return x.masked_fill(mask, value)  # keeps x's memory format, which where() takes from the mask

    def maximum(self, x: Array, floor: Any) -> Array:
        return self.xp.maximum(x, floor) if isinstance(floor, self.xp.Tensor) else x.clamp_min(floor)

    def ldexp(self, x: Array, e: Array) -> Array:
        return _times_power(self.xp, x, e)  # torch.ldexp's own gradient is 0 for negative e (2.13)

    def detach(self, x: Array) -> Array:
        return x.detach()

    def asarray(self, value: Any, x: Array, dtype: Any) -> Array:
        return self.xp.as_tensor(value, dtype=dtype, device=x.device)

    def ones(self, shape: Sequence[int], x: Array, dtype: Any) -> Array:
        return x.new_ones(tuple(shape), dtype=dtype)

    def segment_sum(self, x: Array, codes: Array, n: int) -> Array:
        wide = x.to(self.group_dtype(x))  # index_add adds one row after another: float32 would lose digits
        return wide.new_zeros((n, *x.shape[1:])).index_add(0, codes, wide)

    def segment_max(self, x: Array, codes: Array, n: int) -> Array:
        # not index_reduce, which announces itself as beta in a warning and has no rule for vmap (2.13)
        rows = codes.reshape(-1, *(1,) * (x.ndim - 1)).expand(x.shape)
        return x.new_zeros((n, *x.shape[1:])).scatter_reduce(0, rows, x, "amax")

    def take(self, groups: Array, codes: Array) -> Array:
        return groups.index_select(0, codes)

    def codes(self, values: Array, x: Array) -> Array:
        return self.xp.as_tensor(values, dtype=self.xp.int64, device=x.device)

    def places(self, n: int, x: Array) -> Array:
        return self.xp.arange(n, device=x.device)


def _times_power(xp: Any, x: Array, e: Array) -> Array:
    """x 2^e with the powers of two made as constants, so that the gradient is 2^e and nothing else."""
    half = e // 2
    one = xp.ones_like(half, dtype=x.dtype)
    return x * xp.ldexp(one, half) * xp.ldexp(one, e - half)


def _longest_run(axes: tuple[int, ...], shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """Of these axes, those that lie behind one another in memory as one axis would; the longest such run."""
    best: tuple[int, ...] = axes[:1]
    run: list[int] = []
    most, length = 0, 1
    for a in sorted(axes, key=lambda i: strides[i]):
        if run and strides[a] != strides[run[-1]] * shape[run[-1]]:
            run, length = [], 1
        run.append(a)
        length *= shape[a]
        if length > most:
            best, most = tuple(run), length
    return best


_KINDS = (
    ("torch", "Tensor", Torch()),  # first, because layers of small tensors feel every lookup
    ("numpy", "ndarray", Numpy()),
    ("jax", "Array", Jax()),
    ("dask.array", "Array", Dask()),
)


def backend_of(x: Any) -> Numpy:
    """The library x belongs to."""
    for module, name, backend in _KINDS:
        library = sys.modules.get(module)
        if library is not None and isinstance(x, getattr(library, name)):
            return backend
    raise TypeError(
        f"x is {_article(type(x).__name__)}; homeostat takes NumPy, torch, JAX and Dask arrays."
        + (" For a table pass its values: df.to_numpy()." if hasattr(x, "to_numpy") else "")
        + (" For a list, numpy.asarray(x, dtype=float)." if isinstance(x, list | tuple) else "")
    )


def being_compiled() -> bool:
    """Is torch.compile or torch.export tracing this very line?"""
    torch = sys.modules.get("torch")
    return torch is not None and torch.compiler.is_compiling()


def is_at_hand(x: Array) -> bool:
    """May the values be looked at now? Not in Dask, not while torch or JAX trace or map, not without memory."""
    kind = backend_of(x).name
    if kind == "jax":
        return not isinstance(x, sys.modules["jax"].core.Tracer)
    if kind != "torch":
        return kind == "numpy"
    torch = sys.modules["torch"]
    if being_compiled() or torch._C._get_tracing_state() or torch._C._are_functorch_transforms_active():
        return False
    if type(x) not in (torch.Tensor, torch.nn.Parameter) or x.device.type == "meta":
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def _article(word: str) -> str:
    return f"an {word}" if word[:1].lower() in "aeiou" else f"a {word}"


def to_numpy(x: Any) -> np.ndarray[Any, Any]:
    """A NumPy array of the same values; Dask computes here."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        return np.asarray(x.float() if x.dtype.itemsize == 2 and "bfloat" in str(x.dtype) else x)
    return np.asarray(x)
