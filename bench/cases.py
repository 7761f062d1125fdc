"""Cases: what is measured, as data."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

from bench import layers
from bench.layers import Shape, Sides

DTYPES = ("float32", "bfloat16")
ROWS = ((4096, 1024), (32768, 256), (512, 4096), (8, 128, 768), (128, 64))
IMAGES = ((32, 64, 56, 56), (8, 256, 14, 14), (2, 64, 256, 256), (5, 48, 37, 29))
TINY = 1 << 14  # elements
LARGE = 32 << 20  # bytes of output: from here on the pages of a fresh output cost more than the kernel
FORWARD, BACKWARD = 2, 3  # tensors that move at least: x, y; x, dy, dx


@dataclass(frozen=True)
class Shapes:
    """Where the cases stand that are measured at one shape only."""

    image: Shape
    rows: Shape
    heads: Shape


FULL = Shapes(IMAGES[0], ROWS[0], (4, 512, 16 * 64))
QUICK = Shapes((8, 256, 14, 14), (128, 64), (2, 64, 4 * 64))


@dataclass(frozen=True)
class Case:
    """`moves`: how many tensors of x's size the forward and the backward pass must move at least."""

    family: str
    shape: Shape
    build: Callable[[Shape, bool], Sides]
    last: bool = False
    inputs: int = 1
    moves: tuple[int, int] = (FORWARD, BACKWARD)
    needs: str = ""  # of homeostat; the case is skipped where it is absent
    own: bool = True  # does torch.nn have this layer?

    @property
    def name(self) -> str:
        size = "x".join(map(str, self.shape))
        return f"{self.family} {size}{' channels_last' if self.last else ''}"

    @property
    def elements(self) -> int:
        return prod(self.shape)

    def bytes(self, what: str, itemsize: int) -> int:
        """How much must move at least."""
        forward, backward = self.moves
        tensors = {"forward_backward": forward + backward, "kernel_backward": backward}.get(what, forward)
        return tensors * self.elements * itemsize


def every_case(quick: bool = False) -> list[Case]:
    """All cases; quickly, the smallest of each shape and, of the layers of images, batch norm."""
    if quick:
        images = [case for case in _images(QUICK.image) if case.family == "BatchNorm"]
        return [*_rows(QUICK.rows), *images, *_composed(QUICK)]
    return [*_rows(*ROWS), *_images(*IMAGES), *_composed(FULL)]


def _rows(*shapes: Shape) -> Iterator[Case]:
    for shape in shapes:
        yield Case("LayerNorm", shape, layers.layer_norm)
        yield Case("RMSNorm", shape, layers.rms_norm)


def _images(*shapes: Shape) -> Iterator[Case]:
    kinds = (
        ("BatchNorm", layers.batch_norm),
        ("GroupNorm", layers.group_norm),
        ("InstanceNorm", layers.instance_norm),
    )
    for shape in shapes:
        for family, build in kinds:
            for last in (False, True):
                yield Case(family, shape, build, last)


def _composed(at: Shapes) -> Iterator[Case]:
    yield Case("masked BatchNorm", at.image, layers.masked_batch_norm, own=False)
    yield Case("conditional BatchNorm", at.image, layers.conditional_batch_norm, needs="Conditional", own=False)
    yield Case("BatchRenorm", at.image, layers.batch_renorm, needs="Renorm", own=False)
    yield Case("RMSNorm per head", at.heads, layers.head_rms_norm, own=False)
    two = {"inputs": 2, "moves": (4, 4), "own": False}  # x, residual, sum, y; sum, its gradient, dy, dx
    yield Case("add + LayerNorm", at.rows, layers.add_layer_norm, needs="nn.LayerNorm.add", **two)
    yield Case("add + RMSNorm", at.rows, layers.add_rms_norm, needs="nn.RMSNorm.add", **two)
