"""Several processes on loopback, joined by gloo: what each of them returned, or how it ended."""

import contextlib
import datetime
import multiprocessing
import os
import pickle
import socket
import tempfile
import time
import traceback
from pathlib import Path

SECONDS = 60  # no run takes longer: what is still there then hangs, and is ended


class Ended(Exception):
    """A rank that returned nothing: killed, or ended because it hung."""


def together(n, f, *args, timeout=20.0, seconds=SECONDS):
    """[f(rank, *args) of every rank]; an exception or `Ended` in place of what a rank did not return."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["homeostat.nn", "torch.distributed.fsdp", "homeostat.kernels.synced"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        ranks = [context.Process(target=_run, args=(rank, n, port, folder, timeout, f, args)) for rank in range(n)]
        for process in ranks:
            process.start()
        end = time.monotonic() + seconds
        for process in ranks:
            process.join(max(end - time.monotonic(), 0.1))
        return [_result(process, Path(folder) / f"{rank}") for rank, process in enumerate(ranks)]


def _run(rank, n, port, folder, timeout, f, args):
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "FATAL"}
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    wait = datetime.timedelta(seconds=timeout)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=n, timeout=wait)
    try:
        result = f(rank, *args)
    except Exception as error:
        error.add_note(f"on rank {rank}:\n{traceback.format_exc()}")
        result = error
    try:
        data = pickle.dumps(result)
    except Exception:
        data = pickle.dumps(RuntimeError(f"{type(result).__name__}: {result}\n" + "".join(result.__notes__)))
    (Path(folder) / f"{rank}.part").write_bytes(data)
    (Path(folder) / f"{rank}.part").rename(Path(folder) / f"{rank}")
    if not isinstance(result, Exception):
        with contextlib.suppress(RuntimeError):
            dist.barrier()  # the store is rank 0's, and some may be gone
    os._exit(0)  # a broken group is not taken down in good order


def _result(process, path):
    if process.is_alive():
        process.kill()
        process.join()
        return Ended(f"hung: ended after {SECONDS} seconds")
    return pickle.loads(path.read_bytes()) if path.exists() else Ended(f"exit code {process.exitcode}")


def values(results):
    """What the ranks returned, where all must have returned."""
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results
