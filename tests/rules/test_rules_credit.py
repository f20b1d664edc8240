"""Out of credits, told as stories: what the gate is after each 402."""

from __future__ import annotations

import pytest

from batchrun.rules.credit import FIRST_PROBE, LONGEST_PROBE, Shut, probing, refused


def test_without_patience_and_without_a_time_the_first_402_parks():
    assert refused(None, 100.0, None, patient=False, probe=False) is None


@pytest.mark.parametrize("wait", [0.0, 0.5, 30.0, LONGEST_PROBE])
def test_a_402_that_names_a_time_is_asked_once_more_then(wait: float):
    shut = refused(None, 100.0, wait, patient=False, probe=False)
    assert shut == Shut(100.0 + wait)
    assert refused(probing(shut), 100.0 + wait, None, patient=False, probe=True) is None


def test_a_402_that_names_a_time_far_away_parks_at_once():
    assert refused(None, 100.0, LONGEST_PROBE + 1, patient=False, probe=False) is None


def test_the_402_of_the_probe_parks_even_when_it_names_a_time_again():
    shut = refused(None, 0.0, 5.0, patient=False, probe=False)
    assert shut is not None
    assert refused(probing(shut), 5.0, 5.0, patient=False, probe=True) is None


@pytest.mark.parametrize("patient", [True, False])
@pytest.mark.parametrize("wait", [None, 0.0, 5.0, 900.0])
def test_the_402s_of_calls_already_in_flight_say_nothing_new(wait: float | None, *, patient: bool):
    shut = Shut(130.0, probes=2, probing=True)
    for now in (100.0, 129.0, 500.0):
        assert refused(shut, now, wait, patient=patient, probe=False) is shut


def test_patience_probes_after_30_seconds_and_doubles_to_10_minutes():
    now, waits = 1000.0, []
    shut = refused(None, now, None, patient=True, probe=False)
    for _ in range(40):
        assert shut is not None
        assert not shut.probing
        waits.append(shut.until - now)
        now = shut.until
        shut = refused(probing(shut), now, None, patient=True, probe=True)
    assert waits[:7] == [30.0, 60.0, 120.0, 240.0, 480.0, 600.0, 600.0]
    assert set(waits[5:]) == {LONGEST_PROBE}


def test_probes_without_end_do_not_overflow():
    shut = refused(Shut(0.0, probes=10**6, probing=True), 1.0, None, patient=True, probe=True)
    assert shut == Shut(1.0 + LONGEST_PROBE, probes=10**6 + 1)


@pytest.mark.parametrize(
    ("wait", "until"), [(None, FIRST_PROBE), (0.0, FIRST_PROBE), (5.0, FIRST_PROBE), (31.0, 31.0), (3600.0, 3600.0)]
)
def test_with_patience_the_servers_time_is_a_floor(wait: float | None, until: float):
    assert refused(None, 0.0, wait, patient=True, probe=False) == Shut(until)


def test_a_probe_on_its_way_leaves_the_rest_of_the_gate_as_it_was():
    assert probing(Shut(30.0, probes=3)) == Shut(30.0, probes=3, probing=True)


def test_the_whole_story_of_a_night_without_credits():
    shut = refused(None, 10.0, None, patient=True, probe=False)
    for late in range(32):
        assert refused(shut, 10.1 + late / 100, None, patient=True, probe=False) is shut
    assert shut == Shut(40.0, probes=0)
    shut = refused(probing(shut), 41.0, 90.0, patient=True, probe=True)
    assert shut == Shut(131.0, probes=1)
    shut = refused(probing(shut), 132.0, None, patient=True, probe=True)
    assert shut == Shut(252.0, probes=2)
