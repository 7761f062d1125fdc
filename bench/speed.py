"""Milliseconds through the public modules, allocation and autograd included: torch.nn beside homeostat.nn.

    make bench

The two take turns; a sample taken while another task wanted a core is dropped; the median of the rest is shown, and how
many times as fast homeostat is. Threads are torch's; a ratio above 1 means homeostat is faster.
"""

import resource
import statistics
import time
from pathlib import Path

import torch
from torch import nn

import homeostat as hs

IMAGES = ((32, 64, 56, 56), (8, 256, 14, 14))
ROWS = ((4096, 1024), (512, 4096), (128, 64))
SAMPLES, TRIES = 11, 60


def cases():
    for shape in ROWS:
        yield f"LayerNorm {shape}", lambda m, d=shape[1]: m.LayerNorm(d), shape, False
        yield f"RMSNorm {shape}", lambda m, d=shape[1]: m.RMSNorm(d), shape, False
    for shape in IMAGES:
        for last in (False, True):
            where = f"{shape}{' channels_last' if last else ''}"
            yield f"BatchNorm2d {where}", lambda m, c=shape[1]: m.BatchNorm2d(c), shape, last
            yield f"GroupNorm(32) {where}", lambda m, c=shape[1]: m.GroupNorm(32, c), shape, last
            yield f"InstanceNorm2d {where}", lambda m, c=shape[1]: m.InstanceNorm2d(c, affine=True), shape, last


def alone():
    """Was nobody else waiting for a core?"""
    waiting = Path("/proc/loadavg")
    return not waiting.exists() or int(waiting.read_text().split()[3].split("/")[0]) <= 1


def medians(calls):
    clean = {name: [] for name in calls}
    every = {name: [] for name in calls}
    for _ in range(TRIES):
        for name, call in calls.items():
            quiet, switched = alone(), resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
            start = time.perf_counter()
            call()
            seconds = time.perf_counter() - start
            every[name].append(seconds)
            if quiet and resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw == switched:
                clean[name].append(seconds)
        if all(len(samples) >= SAMPLES for samples in clean.values()):
            break
    return {name: 1e3 * statistics.median(clean[name] or every[name]) for name in calls}


def both_ways(layer, x, dy):
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()

    def step():
        x.grad = None
        layer(x).backward(dy)

    return step


def main():
    print(
        "| layer | dtype | forward: torch.nn | homeostat | times | forward + backward: torch.nn | homeostat | times |"
    )
    print("|---|---|---|---|---|---|---|---|")
    ratios = []
    for dtype in (torch.float32, torch.bfloat16):
        for name, make, shape, last in cases():
            torch.manual_seed(0)
            x, dy = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
            if last:
                x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
            layers = {kind: make(module).to(dtype) for kind, module in (("torch.nn", nn), ("homeostat", hs.nn))}
            cells = []
            with torch.no_grad():
                forward = medians({kind: (lambda f=f, x=x: f(x)) for kind, f in layers.items()})
            for found in (forward, medians({kind: both_ways(f, x, dy) for kind, f in layers.items()})):
                ratio = found["torch.nn"] / found["homeostat"]
                ratios.append(ratio)
                cells += [f"{found['torch.nn']:.3f}", f"{found['homeostat']:.3f}", f"{ratio:.2f}"]
            print(f"| {name} | {str(dtype)[6:]} | " + " | ".join(cells) + " |", flush=True)
    mean = statistics.geometric_mean(ratios)
    print(f"\nGeometric mean of the ratios: {mean:.2f} with {torch.get_num_threads()} threads.")


if __name__ == "__main__":
    main()
