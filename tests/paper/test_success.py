"""Similarity and success: what is read of a study with gaps, planted relations, and what is said of them."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from gradcheck.core import UserError
from gradcheck.paper.measured import COLUMNS, MEASURES
from gradcheck.paper.study import WAYS
from gradcheck.paper.success import OUTCOMES, best_look, evidence, foreseen, relations, said_of_looks
from gradcheck.paper.success import said_of_similarity

IMAGES = 3
BASE = 0.25


def planted(steadier=0.0, ways=0.0, without=(), replicates=4, seed=0):
    """Tables of a study: a cell has a hidden quality, which is its success; its similarity is `steadier` times that
    beside noise, and rises by `ways` from way to way, as success does. Outcomes lack some replicates (`without`)."""
    rng = np.random.default_rng(seed)
    found = {"outcomes": [], "similarities": [], "quality": [], "base": []}
    for k in range(4): found["base"].append(pd.DataFrame(dict(protocol="ours", target=k, image=range(8), judge=BASE)))
    order = [(kind, variant) for kind, variants in WAYS.items() for variant in variants]
    for (g, (kind, variant)), r, k in product(enumerate(order), range(replicates), range(4)):
        where = dict(protocol="ours", kind=kind, replicate=r, target=k, variant=variant, image=range(IMAGES))
        quality = rng.normal() / 10
        same = steadier * quality + rng.normal() / 20 + ways * g
        found["similarities"].append(pd.DataFrame(where | dict.fromkeys(("similarity", "raw", "weighted"), same)))
        if r in without: continue
        said = quality + ways * g + BASE
        for e in (1.0, 10.0):
            rows = dict(energy=e, injected=e, guide=said, judge=said, guess=k, seen=k, whole=1.0, oracle=said)
            found["outcomes"].append(pd.DataFrame(where | rows))
        cell = {name: value for name, value in where.items() if name != "image"}
        found["quality"].append(pd.DataFrame([cell | dict(measure="hits", value=9.0)]))
        if k: found["quality"].append(pd.DataFrame([cell | dict(measure="KID among hits", value=-said)]))
    tables = {name: pd.concat(parts, ignore_index=True) for name, parts in found.items()}
    return tables | dict(base=tables["base"].assign(guess=tables["base"]["image"] < 2))


def test_a_replicate_without_outcomes_is_left_out():
    tables = planted(without=(2,))
    cells = evidence(**tables)
    assert set(cells["replicate"]) == {0, 1, 3} and len(cells) == 6 * 3 * 4
    of = (cells["way"] == "nonrobust, x0_hat") & (cells["replicate"] == 3) & (cells["target"] == 1)
    outcomes = tables["outcomes"]
    mine = outcomes[(outcomes["variant"] == "x0_hat") & (outcomes["replicate"] == 3) & (outcomes["target"] == 1)]
    row = cells[of].iloc[0]
    assert row["judge"] == pytest.approx(mine["judge"].mean() - BASE)
    assert row["oracle"] == pytest.approx(mine["judge"].mean() - 0.25)          # two of eight are guessed
    assert OUTCOMES["oracle"].endswith("above the judge's base rate")            # it is the judge that guesses them
    assert row["near"] == pytest.approx(mine["judge"].mean())                    # minus the KID
    assert cells["near"].isna().equals(cells["target"] == 0)


def test_a_classifier_with_a_gap_is_left_out_whole():
    tables = planted()
    o = tables["outcomes"]
    gap = (o["kind"] == "robust") & (o["variant"] == "both") & (o["replicate"] == 1) & (o["target"] == 3)
    cells = evidence(**tables | dict(outcomes=o[~gap]))
    assert set(cells[cells["kind"] == "robust"]["replicate"]) == {0, 2, 3}
    assert set(cells[cells["kind"] == "nonrobust"]["replicate"]) == {0, 1, 2, 3}
    unknown = o[o["replicate"] == 1].assign(replicate=9)
    with pytest.raises(UserError, match="no cell"): evidence(**tables | dict(outcomes=unknown))


def test_classifiers_that_each_lack_another_cell_are_left_out():
    tables = planted(replicates=2)
    o = tables["outcomes"]
    gaps = (o["kind"] == "robust") & (o["variant"] == "both") & (o["replicate"] == o["target"])
    assert set(evidence(**tables | dict(outcomes=o[~gaps]))["kind"]) == {"nonrobust"}


def row(table, level, kind="both kinds"):
    mine = table[(table["level"] == level) & (table["kind"] == kind)]
    return mine[(mine["measure"] == "raw") & (mine["outcome"] == "judge")].iloc[0]


def test_planted_within_and_between():
    inside = relations(evidence(**planted(steadier=2.0)))
    assert row(inside, "within")["low"] > 0.5 and row(inside, "within", "robust")["ways"] == 2
    outside = relations(evidence(**planted(ways=1.0)))
    assert row(outside, "between")["effect"] == 1 and row(outside, "within")["low"] < 0 < row(outside, "within")["high"]
    assert "robust" not in set(outside[outside["level"] == "between"]["kind"])   # two ways have no correlation of means
    said = said_of_similarity(outside, "ours")
    assert "Within ways, over 96 cells: no relation is shown" in said and "of 6 ways: the steadier succeed more" in said


def looks_at(cells, knowing=1.0, seed=1):
    "Looks that know nothing, but that the share on the ball at t = 75 is the mean success of a cell's ways at a place."
    rng = np.random.default_rng(seed)
    place = cells["variant"].map(lambda v: "x0_hat" if v in ("x0_hat", "both") else "x_t")
    keys = ["protocol", "kind", "replicate", "target", "place"]
    success = cells.assign(place=place).groupby(keys)["judge"].mean().reset_index()
    tables = [success[keys].assign(t=t, **dict(zip(MEASURES, rng.normal(size=(8, len(success)))))) for t in (225, 75)]
    tables[1]["ball"] = success["judge"] * knowing
    return pd.concat(tables, ignore_index=True)[[*COLUMNS]]


def test_a_look_that_knows_is_found_and_blind_ones_are_not():
    cells = evidence(**planted())
    looks = foreseen(cells, looks_at(cells))
    best = best_look(looks, "ours")
    assert (best["measure"], best["t"]) == ("ball", 75) and best["p"] < 0.01 and best["low"] > 0.3
    assert best["best"] > 0.9 and len(looks) == 2 * 2 * len(MEASURES)
    assert "foretells success" in said_of_looks(looks, "ours") and "95 % interval +" in said_of_looks(looks, "ours")
    blind = foreseen(cells, looks_at(cells, knowing=0.0))
    assert best_look(blind, "ours")["p"] > 0.05 and "is not shown" in said_of_looks(blind, "ours")


def test_looks_are_those_of_a_ways_place_and_may_lack_a_classifier():
    cells = evidence(**planted())
    looks = looks_at(cells)
    few = foreseen(cells, looks[(looks["kind"] == "robust") | (looks["replicate"] != 2)])
    assert set(few["cells"]) == {96 - 16}
    elsewhere = looks.assign(ball=looks["ball"].where(looks["place"] == "x_t", 0.0))
    assert best_look(foreseen(cells, elsewhere), "ours")["effect"] < best_look(foreseen(cells, looks), "ours")["effect"]
    with pytest.raises(UserError, match="--full"): foreseen(cells, looks.assign(replicate=9))
