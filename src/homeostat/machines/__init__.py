"""Machines: a model on several of them; its statistics shared, compared, pooled, or taken over several batches."""

from homeostat.kernels.exchange import RankError as RankError
from homeostat.machines.accumulate import accumulate as accumulate
from homeostat.machines.convert import sync as sync
from homeostat.machines.convert import unsync as unsync
from homeostat.machines.pool import Drift as Drift
from homeostat.machines.pool import drift as drift
from homeostat.machines.pool import pool as pool
from homeostat.machines.whole import as_one as as_one
