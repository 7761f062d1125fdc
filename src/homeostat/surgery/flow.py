"""Flow: which layer's output is which layer's input, as seen while a model runs on batches.

The order of modules says nothing of what reads what. Here a layer is given *the tensor itself* that another gave, and
every operation that reads it is noted: those of torch by name, inside and outside of modules. What is still alive
after the model has returned was kept by someone. Batches that take other paths may show more.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from homeostat.surgery.calling import Forward
from homeostat.surgery.certificate import tensors_in
from homeostat.surgery.weights import TRANSPOSED

Check = Callable[[str, Tensor, Tensor], frozenset[int]]

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_ARGUMENTS: dict[Any, tuple[str, ...]] = {
    F.linear: ("input", "weight", "bias"),
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _CONV),
    **dict.fromkeys((torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), _TRANSPOSED),
}


class Wire:
    """A tensor between layers: who made it, who read it, whether it was kept."""

    def __init__(self) -> None:
        self.made: Use | None = None
        self.reads: list[Use | str] = []
        self.kept = False
        self.padded: frozenset[int] = frozenset()  # axes that are longer where it is read, by copies of its own values


class Use:
    """One call: of a norm, which acts along `axes`, or of something linear from `axis_in` to `axis_out`."""

    axes: frozenset[int] = frozenset()
    axis_in = axis_out = 0
    pads = transposed = False
    as_made = True  # does the call take the layer's own bias and groups?

    def __init__(self, layer: str | None, x: Wire) -> None:
        self.layer, self.x, self.y = layer, x, Wire()  # no layer: a weight that nobody stores
        x.reads.append(self)


class Flow:
    """What was seen: the calls of each norm and of each linear layer, in order; whose tensors others read."""

    def __init__(self, norms: Mapping[str, nn.Module], linear: Mapping[str, nn.Module], check: Check) -> None:
        self.uses: dict[str, list[Use]] = {}
        self.strays: dict[str, str] = {}  # a layer, and what read its tensors while it did not run
        self.linear, self._norms, self._check = linear, norms, check
        self._owner = {id(layer.weight): name for name, layer in linear.items()}
        self._own = {id(t): name for name, layer in {**norms, **linear}.items() for t in _tensors_of(layer)}
        self._wires = WeakTensorKeyDictionary()
        self._running: list[tuple[Use, set[int]]] = []  # calls under way, and the tensors that are theirs to read
        self._paused = False

    def watch(self, model: nn.Module, data: Iterable[Any], forward: Forward) -> Flow:
        with self._hooks():
            for batch in data:
                with _Functions(self), _Operators(self):
                    out = forward(model, batch)
                self._close(out)
        return self

    def _close(self, out: Any) -> None:
        """What somebody still holds, `out` among them, was kept."""
        wires: Any = self._wires
        given_out = {id(t) for t in tensors_in(out)}
        if any(wire.made and id(t) not in given_out for t, wire in wires.items()):
            gc.collect()  # or it is garbage that waits in a cycle; collecting costs more than most models
        for wire in wires.values():
            wire.kept = True
        wires.clear()

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        hooks = [
            hook
            for name, layer in self._norms.items()
            for hook in (
                layer.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True),
                layer.register_forward_hook(partial(self._leave, name), with_kwargs=True),
            )
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    # ---- norms, which are modules ----

    def _enter(self, name: str, layer: nn.Module, args: Any, kwargs: Any) -> None:
        x = given(args, kwargs)
        self._start(name, x if isinstance(x, Tensor) else torch.empty(0), [*_tensors_of(layer), x])

    def _leave(self, name: str, layer: nn.Module, args: Any, kwargs: Any, y: Any) -> None:
        x = given(args, kwargs)
        use = self._running.pop()[0]
        if isinstance(x, Tensor) and isinstance(y, Tensor) and y is not x:
            self._wires[y] = use.y
            use.y.made, self._paused = use, True
            use.axes = self._check(name, x, y)
            self._paused = False

    # ---- linear maps, which are functions of a stored weight ----

    def of(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func is F.pad and not self._paused:
            return self._pad(*args, **kwargs)
        if func not in _ARGUMENTS or self._paused:
            return func(*args, **kwargs)
        said = {**dict(zip(_ARGUMENTS[func], args, strict=False)), **kwargs}
        x, weight, bias = said["input"], said["weight"], said.get("bias")
        name = self._owner.get(id(weight))
        use = self._start(name, x, [x, weight, bias])
        try:
            y = func(*args, **kwargs)
        finally:
            self._running.pop()
        use.transposed = "output_padding" in _ARGUMENTS[func]
        use.pads = _pads(said.get("padding", 0))
        ranks = (x.dim() - weight.dim() + 1, y.dim() - weight.dim() + 1)
        use.axis_in, use.axis_out = (x.dim() - 1, y.dim() - 1) if func is F.linear else ranks
        if name is not None:
            layer: Any = self.linear[name]
            made = (layer.bias is bias, isinstance(layer, TRANSPOSED), getattr(layer, "groups", 1))
            use.as_made = made == (True, use.transposed, said.get("groups", 1))
        self._wires[y] = use.y
        use.y.made = use
        return y

    def _pad(self, x: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> Tensor:
        """What repeats values of x is x to whoever reads it: what is done to every value alike is done to these too."""
        repeats = mode != "constant" and x in self._wires
        self._paused = repeats
        try:
            y = F.pad(x, pad, mode, value)
        finally:
            self._paused = False
        if repeats:
            self._wires[y] = wire = self._wires[x]
            wire.padded |= {i for i, (a, b) in enumerate(zip(x.shape, y.shape, strict=True)) if a != b}
        return y

    def _start(self, name: str | None, x: Tensor, own: list[Any]) -> Use:
        if x not in self._wires:
            self._wires[x] = Wire()
        use = Use(name, self._wires[x])
        self._running.append((use, {id(t) for t in own}))
        if name is not None:
            self.uses.setdefault(name, []).append(use)
        return use

    # ---- everything else ----

    def reads(self, op: str, tensors: list[Tensor]) -> None:
        if self._paused:
            return
        own = self._running[-1][1] if self._running else set()
        for t in tensors:
            if id(t) in own:
                continue
            if t in self._wires:
                self._wires[t].reads.append(op)
            if id(t) in self._own:
                self.strays[self._own[id(t)]] = op


class _Functions(TorchFunctionMode):
    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.flow.of(func, args, kwargs or {})


class _Operators(TorchDispatchMode):
    def __init__(self, flow: Flow) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flow = flow

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.flow.reads(name, [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)])
        return func(*args, **(kwargs or {}))


def given(args: Any, kwargs: Any) -> Any:
    """What a layer is called on."""
    return args[0] if args else kwargs.get("input", kwargs.get("x"))


def _tensors_of(layer: nn.Module) -> list[Tensor]:
    return [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]


def _pads(padding: Any) -> bool:
    if isinstance(padding, str):
        return padding != "valid"
    return any(padding) if isinstance(padding, tuple | list) else bool(padding)
