"""What is done about a fault: the whole table, and the waits in it."""

from __future__ import annotations

import random
from itertools import product

import pytest

from batchrun.records import Fault, ParkReason, Trouble
from batchrun.rules.verdicts import CHARGED_ATTEMPTS, LONGEST_BACKOFF, Park, Reject, Retry, Situation, backoff, verdict

NOW = 5000.0
PATIENCE = 900.0

MARKS = {Fault.CUT_SHORT, Fault.FILTERED, Fault.INVALID_OUTPUT}
REJECTED = {Fault.TOO_LONG, Fault.BAD_REQUEST, Fault.BAD_ROW}
MAYBE_ITS_OWN = {Fault.SERVER, Fault.NETWORK, Fault.GARBLED}


def here(**changed: object) -> Situation:
    usual = {
        "tries": 1,
        "charged": 0,
        "others_answered": True,
        "model_from_job": True,
        "patience": PATIENCE,
        "now": NOW,
        "dice": 0.5,
    }
    return Situation(**(usual | changed))


def of(fault: Fault, wait: float | None = None) -> Trouble:
    return Trouble(fault, None, "", wait)


def expected(fault: Fault, situation: Situation) -> tuple[type, object]:
    """(verdict, its reason or whether it is charged), written down once more and differently."""
    parks = {Fault.CREDITS: ParkReason.CREDITS, Fault.KEY: ParkReason.KEY}
    if fault in parks:
        return Park, parks[fault]
    if fault is Fault.MODEL_MISSING and situation.model_from_job:
        return Park, ParkReason.MODEL
    if fault in REJECTED or fault is Fault.MODEL_MISSING:
        return Reject, None
    if fault in MAYBE_ITS_OWN and situation.others_answered:
        return (Reject, None) if situation.charged >= 4 else (Retry, True)
    return Retry, False


SITUATIONS = [
    here(tries=tries, charged=min(charged, tries - 1), others_answered=others, model_from_job=from_job, dice=dice)
    for tries, charged, others, from_job, dice in product(
        (1, 2, 5, 6, 100), (0, 1, 3, 4, 5), (True, False), (True, False), (0.0, 0.999)
    )
]


@pytest.mark.parametrize("fault", sorted(set(Fault) - MARKS))
def test_every_fault_has_its_verdict_in_every_situation(fault: Fault):
    for situation in SITUATIONS:
        kind, detail = expected(fault, situation)
        got = verdict(of(fault), situation)
        assert type(got) is kind, situation
        if isinstance(got, Park):
            assert got.reason is detail
        if isinstance(got, Retry):
            assert got.charged is detail
            assert got.at >= NOW


@pytest.mark.parametrize("fault", sorted(MARKS))
def test_a_mark_on_an_answer_is_no_trouble(fault: Fault):
    with pytest.raises(ValueError, match="marks an answer"):
        verdict(of(fault), here())


@pytest.mark.parametrize("fault", sorted(MAYBE_ITS_OWN))
def test_a_row_that_fails_alone_is_given_up_at_the_fifth_time(fault: Fault):
    charged = 0
    for _ in range(CHARGED_ATTEMPTS - 1):
        got = verdict(of(fault), here(tries=charged + 1, charged=charged))
        assert isinstance(got, Retry)
        charged += got.charged
    assert verdict(of(fault), here(tries=5, charged=charged)) == Reject()


@pytest.mark.parametrize("fault", sorted(MAYBE_ITS_OWN | {Fault.THROTTLED, Fault.OVERLOADED}))
def test_a_row_that_fails_with_all_others_is_never_given_up(fault: Fault):
    for tries in (1, 10, 1000):
        got = verdict(of(fault), here(tries=tries, charged=0, others_answered=False))
        assert isinstance(got, Retry)
        assert not got.charged


def test_a_throttled_row_goes_again_as_soon_as_the_pace_lets_it():
    assert verdict(of(Fault.THROTTLED), here(tries=50)) == Retry(NOW, charged=False)
    assert verdict(of(Fault.THROTTLED, 2.5), here(tries=50)) == Retry(NOW + 2.5, charged=False)


@pytest.mark.parametrize("fault", [Fault.THROTTLED, Fault.OVERLOADED, Fault.SERVER])
@pytest.mark.parametrize("wait", [0.0, 0.5, 59.0, 61.0, PATIENCE])
def test_the_servers_wait_is_a_floor(fault: Fault, wait: float):
    for tries, dice in product((1, 3, 30), (0.0, 0.5, 0.999)):
        got = verdict(of(fault, wait), here(tries=tries, dice=dice, others_answered=False))
        assert isinstance(got, Retry)
        assert NOW + wait <= got.at <= NOW + max(wait, LONGEST_BACKOFF)


@pytest.mark.parametrize("fault", [Fault.THROTTLED, Fault.OVERLOADED, Fault.SERVER])
@pytest.mark.parametrize("wait", [PATIENCE + 1, 86_400.0, 1e9])
@pytest.mark.parametrize("others_answered", [True, False])
def test_a_wait_beyond_patience_parks_at_once(fault: Fault, wait: float, *, others_answered: bool):
    assert verdict(of(fault, wait), here(others_answered=others_answered)) == Park(ParkReason.OVERLOAD)


@pytest.mark.parametrize("fault", sorted(REJECTED | {Fault.CREDITS, Fault.KEY, Fault.MODEL_MISSING}))
def test_a_wait_changes_nothing_for_what_waiting_does_not_mend(fault: Fault):
    assert verdict(of(fault, 1e6), here()) == verdict(of(fault), here())


def test_backoff_is_a_random_share_of_a_doubling_delay():
    assert [backoff(tries, 1.0) for tries in range(1, 10)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert [backoff(tries, 0.0) for tries in (1, 7, 100)] == [0, 0, 0]
    assert [backoff(3, dice / 4) for dice in range(4)] == [0, 1, 2, 3]


def test_backoff_is_never_negative_never_long_and_never_overflows():
    dice = random.Random(1)
    for tries in [*range(300), 10**6, 10**300]:
        assert 0 <= backoff(tries, dice.random()) <= LONGEST_BACKOFF == 60
