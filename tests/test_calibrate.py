"""Calibration in short; `python -m bench.calibrate` is the long one."""

import pytest
from bench import calibrate, zoo
from bench.healthy import FAMILIES, drawn

import homeostat as hs
from homeostat.doctor.rule import every_rule


@pytest.mark.parametrize("seed", range(2 * len(FAMILIES)))
def test_of_healthy_networks_drawn_at_random_no_rule_speaks(seed):
    case = drawn(seed)
    report = hs.check(case.model, case.batches, select="all")
    assert report.codes == []
    assert "HS111" in [result.code for result in report.results if result.state == "passed"]


def test_of_the_networks_asked_those_are_counted_where_a_rule_had_something_to_measure():
    seen = [{"HS101": state} for state in ("passed", "found", "not measured", "not applicable", "passed")]
    counted = calibrate._counted("HS101", seen)
    assert (counted["asked"], counted["spoke"], counted["seeds"]) == (3, 1, [calibrate.FIRST + 1])


def test_the_zoo_counts_fires_silences_and_cures():
    found = zoo._of(every_rule()["HS115"], 2)
    assert [found[what] for what in ("fires on sick", "silent on healthy", "silent once fixed")] == [2, 2, 2]
