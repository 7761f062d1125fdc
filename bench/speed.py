"""Speed: measure every cell, keep a record of each, and write the report.

    make bench                                             everything, on one thread and on all
    python -m bench.speed --quick --into DIR               a few cells, seconds each: does it run?
    python -m bench.speed --resume                         take up a run where it stopped
    python -m bench.speed --only "GroupNorm 32x64"         measure these again and keep the rest

A cell is a case in a dtype on so many threads; the contenders take turns in it, in one process (clock.py).
"""

import argparse
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from bench import copying, growth, heap, inside, keyed, limits, report, whole
from bench.cases import DTYPES, Case, every_case
from bench.clock import Clock
from bench.contenders import KERNELS, WHATS, Calls, contenders
from bench.records import Record, Records, Task, write

CACHE = Path("build/bench")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
LEFT_OUT: set[str] = set()
QUICK = Clock(samples=3, patience=0.02, budget=0.5)


def main() -> None:
    asked = _arguments()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(CACHE.resolve() / "inductor"))  # a second run compiles nothing
    heap.keep()
    clock = QUICK if asked.quick else Clock(budget=asked.budget)
    LEFT_OUT.update(filter(None, asked.without.split(",")))
    into = Path(asked.into)
    records = Records((into if asked.quick else CACHE) / "records.jsonl")
    if not (asked.resume or asked.only):
        records.drop_all()
    speeds = {n: _limit(clock, n, asked.quick, records) for n in asked.threads}
    tasks = [task for task in _tasks(clock, speeds, asked.quick, records) if asked.only in task.name]
    if asked.resume:
        tasks = [task for task in tasks if task not in records]
    _measure(tasks, records)
    results = into / "performance" / "results.json"
    write(results, records)
    report.write(results, into)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few samples of few cases")
    parser.add_argument("--only", default="", metavar="TEXT", help="cells whose name holds TEXT")
    parser.add_argument("--resume", action="store_true", help="skip what is recorded already")
    parser.add_argument("--without", default="", metavar="NAMES", help='contenders to leave out, for instance "jax"')
    parser.add_argument("--budget", type=float, default=Clock.budget, help="seconds for a cell at most")
    parser.add_argument("--threads", default="all", type=_threads, help='for instance "1,all"')
    parser.add_argument("--into", default="docs", metavar="DIR", help="where the report goes")
    return parser.parse_args()


def _threads(text: str) -> list[int]:
    return sorted({CORES if word == "all" else int(word) for word in text.split(",")})


def _limit(clock: Clock, threads: int, quick: bool, records: Records) -> float:
    found = copying.limit(clock, threads, (32 << 20) if quick else copying.BYTES)
    records.add({"kind": "copy", "threads": threads}, found)
    print(f"copy limit, threads {threads}: {found['limit']:.1f} GB/s", flush=True)
    return found["limit"]


def _tasks(clock: Clock, speeds: dict[int, float], quick: bool, records: Records) -> Iterator[Task]:
    most = max(speeds)
    for case in every_case(quick):
        if case.needs and not inside.has(case.needs):
            records.add({"kind": "skipped", "case": case.name}, {"reason": f"no homeostat.{case.needs}"})
            print(f"skipped {case.name}: there is no homeostat.{case.needs}", flush=True)
            continue
        dtypes = DTYPES if case.own or not quick else DTYPES[:1]
        for dtype, threads, what in itertools.product(dtypes, speeds, (*WHATS, *KERNELS)):
            key = {"kind": "cell", "case": case.name, "dtype": dtype, "threads": threads, "what": what}
            yield Task(key, lambda c=case, d=dtype, n=threads, w=what: _cell(clock, speeds[n], c, d, n, w))
    yield from keyed.tasks(clock, most, speeds[most], quick)
    yield from growth.tasks(clock, most, quick)
    yield from whole.tasks(clock, most, quick)


def _cell(clock: Clock, limit: float, case: Case, dtype: str, threads: int, what: str) -> Record:
    torch.set_num_threads(threads)
    calls = {name: call for name, call in contenders(case, dtype).get(what, {}).items() if name not in LEFT_OUT}
    if threads != CORES:  # XLA chooses its threads when it starts
        calls = {name: call for name, call in calls.items() if name != "jax"}
    itemsize = getattr(torch, dtype).itemsize
    moved = case.bytes(what, itemsize)
    beside = copying.Beside(moved) if what in KERNELS and case.elements > limits.LEAST and calls else None
    if beside is not None:
        calls["copy"] = beside
    with torch.set_grad_enabled(what in ("forward_grad", "forward_backward")):
        found = clock.medians(_that_run(calls), threads)
    if beside is not None:
        limit = 1e-6 * moved / (found["copy"]["ms"] * beside.times)
    for timing in found.values():
        timing["gb_s"] = 1e-6 * moved / timing["ms"]
        timing["share"] = timing["gb_s"] / limit
    facts = {"family": case.family, "own": case.own, "elements": case.elements}
    return facts | {"bytes": moved, "output_bytes": case.elements * itemsize, "contenders": found}


def _that_run(calls: Calls) -> Calls:
    """Those that run; what does not is named."""
    running = {}
    for name, call in calls.items():
        try:
            call()
            running[name] = call
        except Exception as error:
            print(f"  {name} fails: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    return running


def _measure(tasks: list[Task], records: Records) -> None:
    start = time.monotonic()
    for i, task in enumerate(tasks, 1):
        found = task.measure()
        records.add(task.key, found)
        minutes, seconds = divmod(int(time.monotonic() - start), 60)
        print(f"[{i:4}/{len(tasks)} {minutes:3}:{seconds:02}] {task.name}  {_line(found)}", flush=True)


def _line(found: Record) -> str:
    timings = found.get("contenders", {})
    ours = timings.get("homeostat", {}).get("ms")
    said = []
    for name, t in timings.items():
        times = f" ({t['ms'] / ours:.2f}x)" if ours and name != "homeostat" else ""
        said.append(f"{name} {t['ms']:.3g} ms{times}")
    return "   ".join(said) or ("measured" if "series" in found else "no kernel of homeostat")


if __name__ == "__main__":
    main()
