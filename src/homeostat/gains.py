"""Gains: what is put back after normalizing. A gain has groups of its own, on the same axes as the frame.

>>> str(Learned("(g c)").frame_in(Frame.parse("n (g c) ... -> n g")))
'n (g c) ... -> (g c)'
"""

from __future__ import annotations

from dataclasses import dataclass

from homeostat.frame import Frame, FrameError, Label


@dataclass(frozen=True)
class Gain:
    """y w + b, one w and b per group of `keep`; `bias=False` has w alone."""

    keep: str
    bias: bool = True

    def frame_in(self, frame: Frame) -> Frame:
        """The groups that are learned."""
        return frame.keep(self.keep)

    def applied_in(self, frame: Frame) -> Frame:
        """The groups of what is applied."""
        return self.frame_in(frame)


@dataclass(frozen=True)
class Learned(Gain):
    """y w + b with one learned w and b per group of `keep`; `bias=False` learns w alone."""


@dataclass(frozen=True)
class Conditional(Gain):
    """y w[k] + b[k]: one learned w and b per value k of a label, which comes with the call.

    Conditional("kind[n] c"): norm(x, kind=(codes, 10)) gives every sample the gain of its kind.
    """

    def frame_in(self, frame: Frame) -> Frame:
        learned = frame.keep(self.keep)
        if len(learned.labels) != 1 or not isinstance(learned.kept[0], Label):
            raise FrameError(f'Conditional("{self.keep}") keeps one label, and it stands first, as in "kind[n] c".')
        return learned

    def applied_in(self, frame: Frame) -> Frame:
        learned = self.frame_in(frame)
        return frame.keep((*learned.labels[0].axes, *learned.kept[1:]))
