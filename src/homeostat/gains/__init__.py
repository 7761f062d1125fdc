"""Gains: what is put back. base.py has what a layer learns; tables.py and conditioned.py what comes with the call."""

from homeostat.gains.base import Around as Around
from homeostat.gains.base import Balanced as Balanced
from homeostat.gains.base import Gain as Gain
from homeostat.gains.base import Learned as Learned
from homeostat.gains.base import declares as declares
from homeostat.gains.base import extent as extent
from homeostat.gains.conditioned import FiLM as FiLM
from homeostat.gains.conditioned import Given as Given
from homeostat.gains.conditioned import Spatial as Spatial
from homeostat.gains.conditioned import Style as Style
from homeostat.gains.tables import Conditional as Conditional
