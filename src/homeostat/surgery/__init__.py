"""Surgery: what changes a trained model, and says by how much."""

from homeostat.surgery.certificate import Certificate as Certificate
from homeostat.surgery.certificate import Change as Change
from homeostat.surgery.running import recalibrate as recalibrate
from homeostat.surgery.running import shift as shift
