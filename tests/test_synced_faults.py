"""When ranks lose each other every one of them raises, names the layer, and has remembered nothing of it."""

import faults
import pytest
from ranks import Ended, together, values


@pytest.fixture(scope="module")
def places():
    return values(together(4, faults.places, timeout=5))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("other layer", ("rank 0: forward of block1.1 (8,)", "rank 1: forward of block0.1 (8,)")),
        ("other width", ("rank 0: forward of Norm (700,)", "rank 1: forward of block0.1 (8,)")),
        ("no gradient", ("rank 0: forward of block0.1 (8,), with gradient", "rank 2: forward of block0.1 (8,), 1")),
        ("backward", ("rank 0: backward of block0.1", "rank 3: forward of block0.1")),
    ],
)
def test_ranks_at_different_places_all_raise_and_say_where_each_is(places, name, parts):
    for found in places:
        for part in parts:
            assert part in found[name]
        assert found["memory"]


def test_a_rank_that_calls_less_often_is_noticed_within_the_timeout_by_all():
    for rank, (text, seconds, same, again) in enumerate(values(together(3, faults.fewer, timeout=2))):
        assert "block0.1" in text, rank
        assert "lost the others" in again
        assert seconds < 8
        assert same


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_a_rank_that_is_killed_raises_on_the_others_and_their_memory_is_whole(way):
    results = together(4, faults.killed, way, timeout=5)
    assert isinstance(results[2], Ended)
    for text, whole, tracked in results[:2] + results[3:]:
        assert f"{way} of block{1 if way == 'forward' else 0}.1" in text
        assert whole
        assert tracked == ([3, 2] if way == "forward" else [3, 3])
