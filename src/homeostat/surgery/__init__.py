"""Surgery: what changes a trained model, and says by how much."""

from homeostat.surgery.certificate import Certificate as Certificate
from homeostat.surgery.certificate import Change as Change
from homeostat.surgery.certificate import Shifted as Shifted
from homeostat.surgery.fold import Folded as Folded
from homeostat.surgery.fold import fold as fold
from homeostat.surgery.freeze import Held as Held
from homeostat.surgery.freeze import freeze as freeze
from homeostat.surgery.freeze import unfreeze as unfreeze
from homeostat.surgery.insert import Inserted as Inserted
from homeostat.surgery.insert import Insertion as Insertion
from homeostat.surgery.insert import Placed as Placed
from homeostat.surgery.insert import insert as insert
from homeostat.surgery.replace import Replaced as Replaced
from homeostat.surgery.replace import Replacement as Replacement
from homeostat.surgery.replace import replace as replace
from homeostat.surgery.running import Recalibrated as Recalibrated
from homeostat.surgery.running import Recalibration as Recalibration
from homeostat.surgery.running import recalibrate as recalibrate
from homeostat.surgery.running import shift as shift
