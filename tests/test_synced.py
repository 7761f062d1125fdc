"""Synced: several processes on gloo give what one process gives, forward, backward and in memory."""

import on_layers
import on_ranks
import pytest
import torch
from ranks import together, values

KINDS = ((torch.float64, False), (torch.float64, True), (torch.float32, False))
CHECKS = [
    *(
        (f"{kind}, {n} ranks, {shape}", on_ranks.trains_as_one, kind, n, shape)
        for kind in on_ranks.MEMORIES
        for n, shapes in on_ranks.SHARDS.items()
        for shape in shapes
    ),
    *(
        (f"{name}, {dtype}{', twice' * second}", on_layers.one_layer, name, dtype, second)
        for name in on_layers.LAYERS
        for dtype, second in KINDS
    ),
    *(
        (f"{name}, {dtype}", on_layers.one_layer, name, dtype, False)
        for dtype in (torch.bfloat16, torch.float16)
        for name in ("Batch", "channels last", "eps=auto", "a gain per value")
    ),
    *(
        (check.__name__, check)
        for check in (
            on_layers.same_bits,
            on_layers.alone_is_inner,
            on_layers.subgroups_apart,
            on_layers.not_finite,
            on_layers.messages,
            on_layers.checkpointed,
            on_layers.torch_func_refused,
            on_layers.a_single_value,
            on_layers.evaluation_is_alone,
            on_layers.nobody_anywhere,
            on_layers.nobody_measured,
        )
    ),
]


@pytest.fixture(scope="module")
def answers():
    return values(together(4, on_ranks.answers, CHECKS, timeout=15, seconds=180))


@pytest.mark.parametrize("name", [name for name, *_ in CHECKS])
def test_ranks_together_are_one_process(answers, name):
    assert "".join(answer.get(name, "not reached") for answer in answers) == ""
