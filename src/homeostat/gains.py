"""Gains: what is put back after normalizing. A gain has groups of its own, on the same axes as the frame.

>>> str(Learned("(g c)").frame_in(Frame.parse("n (g c) ... -> n g")))
'n (g c) ... -> (g c)'
"""

from __future__ import annotations

from dataclasses import dataclass

from homeostat.frame import Frame


@dataclass(frozen=True)
class Learned:
    """y w + b with one learned w and b per group of `keep`; `bias=False` learns w alone."""

    keep: str
    bias: bool = True

    def frame_in(self, frame: Frame) -> Frame:
        return frame.keep(self.keep)
