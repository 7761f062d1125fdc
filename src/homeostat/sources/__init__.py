"""Sources: where a statistic comes from (base.py says which there are)."""

from homeostat.sources.base import BATCH as BATCH
from homeostat.sources.base import Batch as Batch
from homeostat.sources.base import Call as Call
from homeostat.sources.base import Regrouped as Regrouped
from homeostat.sources.base import Source as Source
from homeostat.sources.base import State as State
from homeostat.sources.base import Wrapped as Wrapped
from homeostat.sources.domain import Domain as Domain
from homeostat.sources.kalman import optimal_momentum as optimal_momentum
from homeostat.sources.mixed import Blended as Blended
from homeostat.sources.mixed import Mixed as Mixed
from homeostat.sources.regrouped import Ghost as Ghost
from homeostat.sources.ruled import By as By
from homeostat.sources.ruled import Partial as Partial
from homeostat.sources.ruled import Shrunk as Shrunk
from homeostat.sources.running import Cumulative as Cumulative
from homeostat.sources.running import Frozen as Frozen
from homeostat.sources.running import Renorm as Renorm
from homeostat.sources.running import Running as Running
from homeostat.sources.synced import Synced as Synced
from homeostat.sources.virtual import Virtual as Virtual
from homeostat.sources.virtual import recording as recording
