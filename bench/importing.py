"""Importing: how long `import homeostat` takes, and NumPy, which it waits for: medians of the thread's own time.

python -m bench.importing
"""

import statistics
import subprocess
import sys

TIMED = """
from time import thread_time as now
start = now(); import numpy; between = now(); import homeostat; end = now()
print(between - start, end - between)
"""


def main(times: int = 11) -> None:
    """Fresh interpreters, one after the other."""
    runs = [
        subprocess.run([sys.executable, "-c", TIMED], capture_output=True, text=True, check=True) for _ in range(times)
    ]
    parts = zip(*(map(float, run.stdout.split()) for run in runs), strict=True)
    print("import numpy {:.0f} ms, then homeostat {:.0f} ms".format(*(statistics.median(part) * 1e3 for part in parts)))


if __name__ == "__main__":
    main()
