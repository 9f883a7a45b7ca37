"""Which neurons are run to find the strongest, and what is said of those that were not: on numbers, without a model."""

from __future__ import annotations

import pytest
import torch

from neuronllm.attribution.search import Search
from neuronllm.common.statistics import largest_share

N, K = 4000, 100


def effects(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Heavy-tailed effects, a guess that is off by a few percent, and activity that says little of them."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(N, generator=generator, dtype=torch.float64)  # noqa: E731
    truth = draw() * (0.5 * draw()).exp()
    return truth, truth * (1 + 0.05 * draw()) + 0.01 * draw(), truth.abs() * draw().exp()


def searched(truth, guess, activity, k=K, miss=0.01, **more) -> tuple[Search, list[int]]:
    """The finished search, and how many neurons each round ran."""
    search, rounds = Search(guess, activity, k, miss, **more), []
    ids = search.first()
    while len(ids):
        assert len(ids.unique()) == len(ids) and not search.ran[ids].any()  # none is run twice
        search.add(ids, truth[ids])
        rounds.append(len(ids))
        ids = search.next()
    assert sum(rounds) == int(search.ran.sum()) == search.found()["ran"] and len(rounds) == search.found()["rounds"]
    return search, rounds


def missed(search: Search, truth: torch.Tensor) -> int:
    order = truth.argsort()
    return int((~search.ran[torch.cat([order[: search.k], order[-search.k :]])]).sum())


@pytest.mark.parametrize("seed", range(5))
def test_a_good_guess_takes_few_runs_and_misses_next_to_nothing(seed):
    truth, guess, activity = effects(seed)
    search, _ = searched(truth, guess, activity, seed=seed)
    found = search.found()
    assert found["stopped by"] == "miss" and found["estimated_missed"] <= 0.01 * K
    assert missed(search, truth) <= 0.01 * 2 * K and found["share"] < 1 / 3
    assert found["share"] == found["ran"] / N and found["sample"] < found["ran"]


@pytest.mark.parametrize("loud", [True, False])
def test_strong_neurons_that_the_guess_calls_zero_are_found_by_running_more(loud):
    truth, guess, activity = effects()
    plain, _ = searched(truth, guess, activity)
    hidden = torch.randperm(N, generator=torch.Generator().manual_seed(1))[: K // 2]
    truth[hidden], guess[hidden] = 3 * truth.max(), 0.0
    if loud:
        activity[hidden] = activity.max() * torch.linspace(0.5, 2, K // 2, dtype=torch.float64)
    search, _ = searched(truth, guess, activity)
    assert int(search.ran[hidden].sum()) >= (K // 2 if loud else K // 2 - 1)
    assert search.found()["ran"] > 1.5 * plain.found()["ran"] and missed(search, truth) <= 0.01 * 2 * K
    by_guess = torch.cat([guess.argsort()[:K], guess.argsort()[-K:]])
    assert not torch.isin(hidden, by_guess).any()


def test_more_than_the_bound_are_missed_no_more_than_one_time_in_twenty():
    """A guess that is worth nothing, where only the sample knows anything."""
    truth = effects()[0]
    nothing = torch.zeros(N, dtype=torch.float64)
    more = 0
    for seed in range(100):
        search = Search(nothing, nothing, K, 0.01, seed=seed)
        ids = search.first()
        search.add(ids, truth[ids])
        strong = (truth > search.values[search.ran].topk(K).values[-1]) | (
            truth < search.values[search.ran].topk(K, largest=False).values[-1]
        )
        more += int((strong & ~search.ran).sum()) > search.bound()
    assert more <= 5


def test_a_guess_that_is_worth_nothing_runs_nearly_all():
    truth = effects()[0]
    search, rounds = searched(truth, truth[torch.randperm(N, generator=torch.Generator().manual_seed(0))], truth * 0)
    assert search.found()["share"] > 0.9 and missed(search, truth) <= 0.01 * 2 * K and len(rounds) > 1


@pytest.mark.parametrize("budget", [2 * K, 2 * K + 7, 600, N])
def test_a_budget_is_never_exceeded_and_begins_with_the_best_guesses(budget):
    truth, guess, activity = effects()
    search, _ = searched(truth, guess, activity, miss=0.0, budget=budget)
    order = guess.argsort()
    assert search.ran[torch.cat([order[:K], order[-K:]])].all() and int(search.ran.sum()) <= budget
    found = search.found()
    if budget < N:
        assert found["stopped by"] == "budget" and found["ran"] == budget == found["budget"]
        assert found["bound"] <= N - budget
    else:
        assert found["budget"] is None


def test_what_is_wanted_of_both_ends_may_be_all():
    truth, guess, activity = effects()
    search, rounds = searched(truth, guess, activity, k=N)
    found = search.found()
    assert rounds == [N] and found["stopped by"] == "all were run"
    assert found["bound"] == 0 == found["estimated_missed"]


def test_the_seed_decides_the_sample():
    truth, guess, activity = effects()
    first, again, other = (searched(truth, guess, activity, seed=seed)[0] for seed in (3, 3, 4))
    assert torch.equal(first.ran, again.ran) and first.found() == again.found()
    assert not torch.equal(first.ran, other.ran)


def test_neurons_that_do_nothing_are_not_run_for_it():
    """Half of a ReLU model's neurons are off on every prompt: guess, activity and effect are 0."""
    truth, guess, activity = effects()
    off = torch.arange(N) % 2 == 0
    for some in (truth, guess, activity):
        some[off] = 0
    search, _ = searched(truth, guess, activity)
    assert missed(search, truth) <= 2 and int(search.ran[off].sum()) < 0.15 * N


def test_numbers_that_are_not_numbers_end_the_search_too():
    truth, guess, activity = effects()
    truth[::7], guess[::11], activity[::13] = float("nan"), float("nan"), float("nan")
    search, _ = searched(truth, guess, activity)
    assert search.found()["stopped by"] in ("miss", "all were run")


def test_the_largest_share_is_that_of_clopper_and_pearson():
    assert largest_share(0, 50) == pytest.approx(1 - 0.05 ** (1 / 50))  # nothing seen
    assert largest_share(49, 50) == pytest.approx(0.95 ** (1 / 50))  # all but one
    assert largest_share(3, 3) == largest_share(0, 0) == 1
    share = largest_share(2, 30)
    few = sum([1, 30, 435][n] * share**n * (1 - share) ** (30 - n) for n in range(3))
    assert few == pytest.approx(0.05) and share > 2 / 30
