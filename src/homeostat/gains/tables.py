"""Conditional: a table of gains, a row per value of a label; looked up by codes, or mixed by shares.

codes k [n]         w_n = w[k_n]
shares p [n, K]     w_n = sum over k of p_nk w[k]         a row of p that is one-hot is a code
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from homeostat.arrays import being_compiled
from homeostat.errors import whole
from homeostat.frame import Frame, FrameError, Label, ShapeError
from homeostat.gains.base import Learned, Pair, lengths_in
from homeostat.labels import is_coded, resolve


@dataclass(frozen=True)
class Conditional(Learned):
    """y w[k] + b[k]: one learned w and b per value k of a label, which comes with the call.

    Conditional("kind[n] c", classes=10): norm(x, kind=codes) gives every sample the gain of its kind. Shares of the
    kinds, p [n, 10], in place of codes give it sum_k p_k w[k] and sum_k p_k b[k]: a soft label, a point between kinds.
    An embedding of kinds that many layers share is FiLM's: hs.given(cond=embedding(codes)).
    """

    classes: int = 0

    def frame_in(self, frame: Frame) -> Frame:
        learned = frame.keep(self.keep)
        if len(learned.labels) != 1 or not isinstance(learned.kept[0], Label):
            raise FrameError(f'Conditional("{self.keep}") keeps one label, and it stands first, as in "kind[n] c".')
        return learned

    def applied_in(self, frame: Frame) -> Frame:
        learned = self.frame_in(frame)
        return frame.keep((*learned.labels[0].axes, *learned.kept[1:]))

    def labels_in(self, frame: Frame) -> tuple[Label, ...]:
        return self.frame_in(frame).labels

    def sizes_in(self, frame: Frame) -> dict[str, int]:
        n = whole("classes", self.classes) if self.classes else 0
        return {label.name: n for label in self.labels_in(frame) if n}

    def make(self, layer: Any, frame: Frame, sizes: Mapping[str, int], kind: dict[str, Any]) -> None:
        (label,) = self.labels_in(frame)
        n = sizes.get(label.name)
        if n is None or self.classes not in (0, n):
            raise FrameError(f"{self} is told {'no' if n is None else n} {label.name}s: give their number, classes=...")
        super().make(layer, frame, sizes, kind)
        layer.label, layer.labelled = label, frame.keep(label.axes)

    def at(self, layer: Any, x: Any, given: dict[str, Any]) -> Pair:
        import torch

        name, n, extent = layer.label.name, layer.counts[layer.label.name], lengths_in(layer, x, layer.labelled)
        value = given.pop(name, None)
        if torch.is_tensor(value):
            if value.is_floating_point() and value.dim() > len(extent):
                shares = self._shares(layer, value, (*extent, n))
                return _rows(layer, lambda table: shares.to(table.dtype) @ table)
            value = value if value.is_floating_point() else (value, n)  # the layer knows how many there are
        if not is_coded(value) or value[1] != n:
            raise FrameError(
                f"{self} needs the {name} of each {' '.join(layer.label.axes)}: pass {name}=codes, a tensor of "
                f"integers, or (codes, {n}), or their shares, fractions of shape {(*extent, n)}."
            )
        if any(one.name == name for one in layer.frame.labels):
            given[name] = value  # the frame needs it too
        codes, read = value[0], (name, value, extent, str(layer.label))
        usual = x.is_cpu and getattr(codes, "dtype", None) is torch.int64 and tuple(codes.shape) == extent
        if not usual or being_compiled():
            codes, _ = resolve(*read)
        at = torch.as_tensor(codes, dtype=torch.int64, device=x.device)
        try:
            return _rows(layer, lambda table: torch.embedding(table, at))
        except IndexError:  # to look at every code first would take as long as the rows do
            resolve(*read)
            raise

    def _shares(self, layer: Any, shares: Any, shape: tuple[int, ...]) -> Any:
        name = layer.label.name
        if any(one.name == name for one in layer.frame.labels):
            raise FrameError(f'"{layer.frame}" measures each {name} by itself, so {name}= takes codes and no shares.')
        if tuple(shares.shape) != shape:
            raise ShapeError(f"{self} needs shares of shape {shape} for this x; got {tuple(shares.shape)}.")
        return shares


def _rows(layer: Any, of: Callable[[Any], Any]) -> Pair:
    """What `of` makes of w and of b, as tables [K, ...] of two axes."""

    def rows(p: Any) -> Any:
        if p is None:
            return None
        if p.dim() == 2:
            return of(p)
        found = of(p.reshape(len(p), -1))
        return found.reshape(*found.shape[:-1], *p.shape[1:])

    return rows(layer.weight), rows(layer.bias)
