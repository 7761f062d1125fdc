"""One thread per worker: two workers on two cores would wait for each other at every small tensor."""

import os

import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
