"""Rank correlations within groups and between them: planted relations, intervals over whole classifiers and classes,
and the best of many."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from gradcheck.core import UserError
from gradcheck.runs.ranks import best_of_many, between, centred_ranks, coverage, made_cells, weights_of
from gradcheck.runs.ranks import with_interval, within


def both_levels(cells, resamples=300):
    weights = weights_of(cells, resamples)
    return [with_interval(rule(cells["x"], cells["y"], cells["way"], weights)) for rule in (within, between)]


def cells_of(seed=0, **world): return made_cells(np.random.default_rng(seed), **world)


def test_ranks_know_their_group_alone():
    got = centred_ranks([3, 1, 2, 30, 10, 10], list("aaabbb"))
    assert got == pytest.approx([0.25, -0.25, 0, 0.25, -0.125, -0.125])


def test_one_group_is_spearmans():
    cells = cells_of(slope=0.5, G=1)
    expected = spearmanr(cells["x"], cells["y"]).statistic
    assert both_levels(cells)[0].mean == pytest.approx(expected)


def test_within_and_not_between():
    "The ways' means are far apart and have no correlation; within them the cells rise together."
    cells = cells_of(slope=2.0, G=4)
    way = cells["way"].astype("category").cat.codes.to_numpy()
    for column, means in (("x", [0, 1, 2, 3]), ("y", [1, 3, 0, 2])):
        cells[column] += 100 * np.array(means)[way] - cells.groupby("way")[column].transform("mean")
    inside, outside = both_levels(cells)
    assert inside.low > 0.5 and outside.mean == pytest.approx(0) and outside.low <= 0 <= outside.high


def test_between_and_not_within():
    inside, outside = both_levels(cells_of(ways=-20.0))                          # x falls, y rises with the way
    assert inside.low < 0 < inside.high and abs(inside.mean) < 0.3 and outside.high == outside.low == -1


def test_simpsons_paradox_is_told_apart():
    inside, outside = both_levels(cells_of(slope=2.0, ways=20.0))
    assert inside.low > 0.5 and outside.mean == outside.high == -1
    pooled = spearmanr(*cells_of(slope=2.0, ways=20.0)[["x", "y"]].to_numpy().T).statistic
    assert pooled < -0.5


def test_a_constant_has_no_correlation():
    cells = cells_of().assign(x=1.0)
    assert (within(cells["x"], cells["y"], cells["way"], weights_of(cells, 5)) == 0).all()
    few = cells[cells["way"] < 2]
    assert np.isnan(between(few["x"], few["y"], few["way"], weights_of(few, 5))).all()


def test_whole_classifiers_and_classes_are_drawn_of_each_kind():
    cells = pd.concat([cells_of(C=3), cells_of(C=2).assign(kind="other")], ignore_index=True)
    weights = weights_of(cells, 50)
    assert (weights[0] == 1).all() and weights.shape == (51, len(cells))
    for _, mine in cells.groupby(["kind", "replicate", "target"]):              # all ways of a cell alike
        assert (weights[:, mine.index] == weights[:, mine.index[:1]]).all()
    for _, mine in cells.groupby("kind"):                                       # as many as there are, in each kind
        assert (weights[:, mine.index].sum(1) == len(mine)).all()
    assert (weights_of(cells, 50) == weights).all()


@pytest.mark.parametrize("world", [{}, dict(classifier=2.0), dict(classes=2.0), dict(classifier=2.0, classes=2.0)])
def test_intervals_hold_nothing_where_there_is_nothing(world):
    assert coverage(worlds=80, resamples=200, **world) >= 0.88
    rng = np.random.default_rng(0)

    def naive():
        cells = made_cells(rng, **world)
        drawn = rng.multinomial(len(cells), np.full(len(cells), 1 / len(cells)), 200)
        weights = np.concatenate([np.ones((1, len(cells))), drawn])
        effect = with_interval(within(cells["x"], cells["y"], cells["way"], weights))
        return effect.low <= 0 <= effect.high

    if world: assert np.mean([naive() for _ in range(80)]) < 0.88               # cells are no independent draws


def test_the_best_of_many_finds_what_is_there():
    cells = cells_of(slope=1.0)
    blind = np.random.default_rng(1).normal(size=(40, len(cells)))
    p = best_of_many([*blind, -cells["x"]], cells["y"], cells, "way", shuffles=300)
    assert p.argmin() == 40 and p[40] < 0.02 and p.shape == (41,)


def test_the_best_of_many_blind_ones_is_seldom_sure():
    rng = np.random.default_rng(0)
    best, alone = [], []
    for world in range(60):
        cells = made_cells(rng, classifier=1.0)
        blind = [made_cells(rng, classifier=1.0)["x"] for _ in range(20)]
        best.append(best_of_many(blind, cells["y"], cells, "way", shuffles=99).min())
        if world % 3: continue                              # it needs fewer worlds, and takes most of the time
        alone.append(min(best_of_many([x], cells["y"], cells, "way", shuffles=99)[0] for x in blind))
    assert np.mean(np.array(best) <= 0.05) < 0.15 and np.mean(np.array(alone) <= 0.05) > 0.3


def test_a_shuffle_needs_all_cells():
    cells = cells_of().iloc[1:].reset_index(drop=True)
    with pytest.raises(UserError, match="gaps"): best_of_many([cells["x"]], cells["y"], cells, "way", shuffles=2)


def test_a_shuffle_needs_the_groups_of_one_classifier_from_all_of_its_kind():
    cells = cells_of()
    cells = cells[(cells["way"] != cells["way"].iloc[0]) | (cells["replicate"] != cells["replicate"].iloc[0])]
    with pytest.raises(UserError, match="gaps"): best_of_many([cells["x"]], cells["y"], cells, "way", shuffles=2)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_numbers_that_are_none_have_no_ranks(broken):
    cells = cells_of()
    x = cells["x"].where(cells.index > 0, broken)
    for measure, y in ((x, cells["y"]), (cells["x"], x)):
        with pytest.raises(UserError, match="NaN or infinite"): best_of_many([measure], y, cells, "way", shuffles=2)
