"""The pace over more seeds and whole half hours: too slow for every run of the suite."""

import dataclasses

import pytest

from tests.rules.test_pace import HALF_HOUR, TRIALS, play

pytestmark = pytest.mark.soak


@pytest.mark.parametrize("name", TRIALS)
def test_thirty_more_seeds_stay_near_the_limit(name: str) -> None:
    trial = dataclasses.replace(TRIALS[name], seeds=30)
    clients = play(trial)
    assert min(100 * client.good / trial.possible for client in clients) >= trial.goodput[1] - 2
    assert max(100 * client.share_429 for client in clients) <= 1.5 * trial.refused[1]


def test_two_hundred_a_second_for_half_an_hour() -> None:
    trial = dataclasses.replace(TRIALS["two_hundred_a_second"], until=HALF_HOUR, possible=200 * HALF_HOUR + 10, seeds=3)
    for client in play(trial):
        assert client.good > 0.985 * trial.possible
        assert client.share_429 < 0.003
