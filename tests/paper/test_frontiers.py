"""Frontiers: curves in closed form, ranks and domination on planted worlds, and the runs at the smallest size."""
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from gradcheck.core import UserError
from gradcheck.guidance.sampling import NonFinite
from gradcheck.paper import frontier_runs
from gradcheck.paper.frontier_runs import FRONTIER_STUDY, cells_by_way, costs_of, equal_steps, full_frontiers
from gradcheck.paper.frontier_runs import image_steps, kept_costs, plan_frontiers, scales_in, unguided_of
from gradcheck.paper.frontiers import FAMILIES, FRONTIER_WAYS, PAPER, along, dominated, helped, home_of, matched
from gradcheck.paper.frontiers import means_of, planted_frontiers, ranking, reached, read_frontiers, said_of_domination
from gradcheck.paper.frontiers import said_of_lacking, said_of_ranks
from gradcheck.paper.study import FULL, cells_of, spec_of
from gradcheck.paper.study_evidence import at_equal_energy, cube
from gradcheck.paper.study_results import write_files
from gradcheck.runs.quality import Quality
from gradcheck.runs.scales import reach

FEW = {way: FRONTIER_WAYS[way] for way in (*PAPER, "x_t, unit norm", "best of 2")}
TINY = replace(
    FRONTIER_STUDY,
    energies=(14.0,),
    steps=2,
    count=2,
    replicates=1,
    ways={"nonrobust": {way: FRONTIER_WAYS[way] for way in ("plain", "best of 2")}},
)


def world(shifts, **how):
    return planted_frontiers(lambda way: shifts.get(way, (0.0, 0.0)), FEW, **how)


def test_every_way_is_a_setting_of_its_own():
    "In each cell all ways differ; the paper's are the study's, but for the number of images."
    cells = cells_by_way(replace(FRONTIER_STUDY, replicates=1))
    keys = {way: spec_of(some[0], 0.5, FRONTIER_STUDY).key for way, some in cells.items()}
    assert len(set(keys.values())) == len(FRONTIER_WAYS) == len(PAPER) + sum(map(len, FAMILIES.values()))
    theirs = [c for c in cells_of(FULL) if (c.protocol, c.kind, c.replicate, c.target) == ("ours", "nonrobust", 0, 0)]
    assert {c.variant: spec_of(c, 0.5, FULL).key for c in theirs} == {way: keys[way] for way in PAPER}
    assert len(FRONTIER_STUDY.energies) >= 6 and {home_of(way) for way in FRONTIER_WAYS} == {"", "plain", "x0_hat"}


def test_a_point_of_a_curve_in_closed_form():
    "What is linear in log energy is that line, whatever was injected; beyond what was met, the last outcome stands."
    injected = {1.0: 0.5, 4.0: 6.0, 16.0: 8.0}
    rows = [
        dict(image=i, energy=e, injected=x, judge=0.1 * np.log(x) + i) for e, x in injected.items() for i in range(3)
    ]
    means = {name: column.to_numpy() for name, column in pd.DataFrame(rows).groupby("energy").mean().items()}
    found = along(means, ["judge"], [1.0, 4.0, 16.0])
    assert found["judge"] == pytest.approx(1 + 0.1 * np.log([1, 4, 8]))
    nothing = along(dict(injected=np.zeros(3), judge=np.full(3, 0.25)), ["judge"], [1.0, 4.0])
    assert nothing["judge"].tolist() == [0.25, 0.25]


def test_a_curves_mean_is_the_studys_outcome_at_equal_energy():
    outcomes, _ = world({}, replicates=2)
    outcomes["injected"] = outcomes["energy"] * np.exp(np.random.default_rng(0).normal(0, 0.5, len(outcomes)))
    means = means_of(reached(outcomes), "judge")
    for way, rows in at_equal_energy(outcomes, "judge").groupby("variant"):
        assert np.allclose(means[way].unstack(), cube(rows, "judge").mean(2))


def test_what_is_planted_is_found():
    "A higher probability alone is no domination; a loss in both is; all others are alike."
    outcomes, costs = world({"x_t, unit norm": (0.3, 0.0), "both": (-0.2, -0.2)})
    found = reached(matched(outcomes, costs, "energy"))
    table = ranking(found, "judge")
    assert table["variant"].iloc[[0, -1]].tolist() == ["x_t, unit norm", "both"]
    assert table[["rank", "rank_low", "rank_high", "first"]].iloc[0].tolist() == [1, 1, 1, 1]
    assert table["first"].sum() == pytest.approx(1) and table["rank"].sum() == pytest.approx(21)
    lost = dominated(found, "judge", "near")
    assert {way: set(rivals) for way, rivals in lost.items() if rivals} == {"both": set(FEW) - {"both"}}
    assert said_of_domination(lost).endswith("dominated: both (by 5, of the paper's by plain and x0_hat and adam).")
    assert "x_t, unit norm (0.700" in said_of_ranks(table, "judge") and "of 0 others" in said_of_ranks(table, "judge")
    verdicts = helped(outcomes, "judge").set_index("variant")["verdict"]
    assert verdicts["x_t, unit norm"] == "holds" and verdicts["both"] == "does not hold"
    assert verdicts["adam"] == "no difference that matters" and "plain" not in verdicts


def test_two_classifiers_dominate_nothing():
    found = reached(world({"both": (-0.2, -0.2)}, replicates=2)[0])
    assert dominated(found, "judge", "near") is None
    assert said_of_domination(None) == "With fewer than 3 classifiers, no way is said to dominate another."


def test_a_way_that_has_more_or_fewer_cells_takes_no_other_with_it():
    outcomes, costs = world({})
    more = outcomes[(outcomes["variant"] == "plain") & (outcomes["replicate"] == 0)].assign(replicate=7)
    fewer = outcomes[(outcomes["variant"] != "adam") | (outcomes["target"] > 0)]
    assert {*matched(pd.concat([outcomes, more]), costs, "energy")["replicate"]} == {*outcomes["replicate"]}
    kept = matched(fewer, costs, "energy")
    assert {*kept["variant"]} == {*FEW} - {"adam"}
    assert said_of_lacking(fewer, kept) == "Left out, since they lost a cell, or an energy of one: adam."
    assert said_of_lacking(outcomes, outcomes) == ""


def test_a_way_that_lost_an_energy_of_a_cell_is_left_out():
    "Its weaker energies do not stand for the strongest."
    outcomes, costs = world({})
    cell = (outcomes["variant"] == "adam") & (outcomes["replicate"] == 1) & (outcomes["target"] == 2)
    lost = outcomes[~(cell & (outcomes["energy"] == 100.0))]
    for by in ("energy", "cost"):
        kept = matched(lost, costs, by)
        assert {*kept["variant"]} == {*FEW} - {"adam"} and {*kept["energy"]} == {*outcomes["energy"]}
        assert "an energy of one: adam." in said_of_lacking(lost, kept)


@pytest.mark.parametrize("harm", [
    lambda o, c: (o.replace({"variant": {"plain": "plane"}}), c.replace({"variant": {"plain": "plane"}})),
    lambda o, c: (o, c[c["variant"] != "plain"]),
    lambda o, c: (o, c.assign(steps=c["steps"] - 10)),
    lambda o, c: (o, pd.concat([c, c[:1]])),
], ids=["no way", "no cost", "other steps", "twice"])
def test_frontiers_that_do_not_fit_together_are_refused(tmp_path, harm):
    outcomes, costs = world({})
    for name, some in (("whole", (outcomes, costs)), ("harmed", harm(outcomes, costs))):
        write_files(dict(zip(("outcomes", "costs"), some)), {}, {}, tmp_path / name, "%.3g")
    assert len(read_frontiers(tmp_path / "whole")) == 2
    with pytest.raises(UserError, match="frontiers --full"): read_frontiers(tmp_path / "harmed")


def test_outcomes_on_which_nothing_can_be_decided_leave_no_old_ranking_beside_them(tmp_path):
    outcomes, costs = world({}, replicates=1)
    write_files(dict(costs=costs), {}, {}, tmp_path, "%.3g")
    frontier_runs.write_frontiers(outcomes, {}, tmp_path)
    assert (tmp_path / "ranking.csv").is_file() and (tmp_path / "frontiers.json").is_file()
    with pytest.raises(UserError, match="no finite number"):
        frontier_runs.write_frontiers(outcomes.assign(judge=np.nan), {}, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"outcomes.csv.gz", "costs.csv.gz"}


def test_what_a_folder_knows_of_costs_is_added_to(tmp_path, monkeypatch):
    "Ways of which it has none are measured; those that nobody asked for are refused."
    asked = []

    def measured(study, *_):
        ways = [*study.ways["nonrobust"]]
        asked.append(ways)
        return pd.DataFrame(dict(variant=ways, cost=2.0, steps=50, equal_steps=30))
    monkeypatch.setattr(frontier_runs, "costs_of", measured)
    def study(*ways): return replace(TINY, ways={"nonrobust": {way: FRONTIER_WAYS[way] for way in ways}})
    kept_costs(tmp_path, study("plain", "adam"))
    costs = kept_costs(tmp_path, study("plain", "adam", "x0_hat"))
    assert asked == [["plain", "adam"], ["plain", "x0_hat"]]
    assert costs["variant"].tolist() == ["plain", "adam", "x0_hat"]
    with pytest.raises(UserError, match="cost of 'x0_hat', which is none of the 2 ways"):
        kept_costs(tmp_path, study("plain", "adam"))


def test_no_domination_where_classes_disagree():
    "On the whole one way is far ahead in both, but by one class of four alone."
    outcomes, _ = world({})
    ahead = (outcomes["variant"] == "both") & (outcomes["target"] == 0)
    outcomes.loc[ahead, "judge"] += 0.8
    outcomes.loc[ahead, "far"] -= 0.8
    found = reached(outcomes)
    table = ranking(found, "judge")
    assert table["variant"][0] == "both" and not any(dominated(found, "judge", "near").values())
    assert (table["low"][0], table["high"][0]) == (0, 1)             # of a probability, although classes disagree
    assert ranking(found, "near")["low"].min() < 0


def test_equal_cost_takes_other_runs_and_ways_with_gaps_are_left_out():
    outcomes, costs = world({}, replicates=2)
    costs.loc[costs["variant"] == "both", "equal_steps"] = 25
    worse = outcomes[outcomes["variant"] == "both"].assign(steps=25, judge=0.0)
    table = pd.concat([outcomes, worse], ignore_index=True)
    at_energy = matched(table, costs, "energy")
    assert (at_energy["steps"] == 50).all() and len(at_energy) == len(outcomes)
    at_cost = matched(table, costs, "cost")
    assert at_cost.loc[at_cost["variant"] == "both", "judge"].tolist() == [0.0] * len(worse)
    gap = table[(table["variant"] != "adam") | (table["target"] > 0)]
    assert set(matched(gap, costs, "energy")["variant"]) == set(FEW) - {"adam"}


@pytest.mark.parametrize("cost, steps", [(1.2, 50), (1.24, 50), (2.4, 25), (0.6, 100), (4.5, 15), (100.0, 5)])
def test_equal_steps(cost, steps):
    assert equal_steps(cost, 1.2, 50) == steps


def test_costs_are_ratios_in_the_order_of_the_runs(monkeypatch):
    "The paper's first, then the cheaper; a way whose gradients are never finite is named."
    def seconds(spec, device):
        if spec.stabilizer == "unit": raise NonFinite("not finite.")
        return {"x_t": 3.0, "x0_hat": 5.0}.get(spec.where, 2.0) * spec.candidates

    monkeypatch.setattr(frontier_runs, "seconds_of", seconds)
    ways = ("best of 2", "x_t, unit norm", "x0_hat", "x_t, first norm", "plain")
    study = replace(FRONTIER_STUDY, replicates=1, ways={"nonrobust": {way: FRONTIER_WAYS[way] for way in ways}})
    with pytest.warns(UserWarning, match="x_t, unit norm: left out"): table = costs_of(study)
    assert table["variant"].tolist() == ["plain", "x0_hat", "x_t, first norm", "best of 2"]
    assert table["cost"].tolist() == [1.5, 2.5, 1.5, 2.0] and table["equal_steps"].tolist() == [50, 30, 50, 40]


def test_scales_grow_by_what_fewer_steps_miss(monkeypatch):
    study = replace(FRONTIER_STUDY, replicates=1)
    cells = cells_by_way(study)
    monkeypatch.setattr(frontier_runs, "scales_of", lambda cells, *_: {cell: [1.0, 4.0] for cell in cells})
    scales = scales_in(cells["plain"], study)
    long, short = (unguided_of(spec_of(cells["plain"][0], 1.0, study, steps=n), study) for n in (50, 25))
    assert scales(50)[cells["plain"][0]] == [1.0, 4.0]
    grown = reach(long) / reach(short)
    assert grown > 1 and scales(25)[cells["plain"][0]] == pytest.approx([grown, 4 * grown], 5e-3)
    assert set(scales_in(cells["best of 2"], study)(50)[cells["best of 2"][0]]) == {0.0}


def test_what_is_kept_of_a_way_is_of_these_weights_of_the_autoencoder_too(monkeypatch):
    "It measures how far pictures are from real ones."
    asked, cells = [], cells_by_way(TINY)["plain"]
    monkeypatch.setattr(frontier_runs, "derived", lambda kind, made_of, make: asked.append(json.dumps(made_of)) or {})
    monkeypatch.setattr(frontier_runs, "read_card", lambda name: dict(sha256=f"other weights of {name}"))
    frontier_runs.kept_rows(cells, [2], TINY, None)
    assert "other weights of laptop/autoencoder" in asked[0]


def looked_at(samples, target):
    seen = pd.DataFrame(dict(label=[target] * len(samples), whole=True, hit=True))
    return Quality(samples.float().flatten(1)[:, :64], seen)


def test_the_smallest_frontiers_run_and_go_on(tmp_path, own_cache, monkeypatch, only_engine):
    "The second time, no way is run again, and all is the same to the byte; costs are those of the folder."
    real = {name: looked_at(torch.arange(8 * 64).view(8, 64), 0) for name in ("all", "target")}
    monkeypatch.setattr("gradcheck.paper.study_runs.quality_of", looked_at)
    monkeypatch.setattr(frontier_runs, "real_quality", lambda target: real)
    costs = pd.DataFrame(dict(variant=["plain", "best of 2"], cost=[1.2, 2.0], steps=2, equal_steps=[2, 1]))
    for name in "ab": write_files(dict(costs=costs), {}, {}, tmp_path / name)
    said = []
    with only_engine() as engine: folder = full_frontiers(tmp_path / "a", TINY, engine=engine, report=said.append)
    monkeypatch.setattr(frontier_runs, "way_rows", lambda *args: pytest.fail("a finished way is run again"))
    again = full_frontiers(tmp_path / "b", TINY, report=said.append)
    names = {"outcomes.csv.gz", "costs.csv.gz", "ranking.csv", "frontiers.json"}
    assert {path.name for path in folder.iterdir()} == names
    for name in names: assert (folder / name).read_bytes() == (again / name).read_bytes(), name
    outcomes, _ = read_frontiers(folder)
    assert outcomes.groupby(["variant", "steps"]).size().to_dict() == {
        ("plain", 2): 8, ("best of 2", 2): 8, ("best of 2", 1): 8,
    }
    assert (outcomes["injected"] > 0).equals(outcomes["variant"] == "plain")
    known = json.loads((folder / "frontiers.json").read_text(encoding="utf-8"))
    assert [*known["study"]["ways"]["nonrobust"]] == ["plain", "best of 2"] and known["study"]["energies"] == [14.0]
    assert said[-1].endswith(str(again)) and "With fewer than 3 classifiers, no way" in "".join(said)
    (folder / "costs.csv.gz").write_bytes(b"")
    with pytest.raises(UserError, match="frontiers --full"): read_frontiers(folder)


def test_the_plan_counts_what_is_run(monkeypatch):
    monkeypatch.setattr(frontier_runs, "seconds_of", lambda spec, device: 1.0 + (spec.where == "x0_hat"))
    monkeypatch.setattr(frontier_runs, "seconds_per_image_step", lambda *args, micro_batch: 0.01)
    ways = {way: FRONTIER_WAYS[way] for way in ("plain", "x0_hat", "best of 2")}
    study = replace(FRONTIER_STUDY, replicates=1, ways={"nonrobust": ways})
    row = dict(variant="x0_hat", steps=50, equal_steps=25)
    assert image_steps(row, [None] * 4, study) == 4 * (20 * 50 + 6 * 4 * (50 + 25))
    assert image_steps(row | dict(variant="best of 2", equal_steps=50), [None] * 4, study) == 4 * 4 * 50
    lines = plan_frontiers(study).splitlines()
    assert len(lines) == 1 + 3 + 1 and lines[2].split() == ["x0_hat", "2.0", "50", "25", "3.7", "min", "5.2", "min"]


def test_the_command_asks_for_the_frontiers(cli, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(frontier_runs, "full_frontiers", lambda out, **how: asked.append(out))
    monkeypatch.setattr(frontier_runs, "plan_frontiers", lambda **how: "a plan")
    assert cli("reproduce", "frontiers", "--full", "--plan")[1] == "a plan\n" and not asked
    assert cli("reproduce", "frontiers", "--full", "--out", tmp_path)[0] == 0 and asked == [tmp_path / "frontiers"]
    assert cli("reproduce", "frontiers", "--full", "-p", "steps=4")[0] == 2
