"""The soak in short; `python -m bench.soak` is the long one."""

import pytest
from bench import soak


@pytest.mark.parametrize("seed", [100, 101])
def test_a_killed_rank_ends_the_others_with_an_error_and_leaves_a_checkpoint_that_loads(seed):
    clean, what = soak.run(seed, 30)
    assert clean, what
