"""ADAM's parts: the corners in closed form, the questions on planted worlds, and one run at the smallest size."""
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from gradcheck.base import reference_folder
from gradcheck.core import UserError
from gradcheck.guidance.stabilizers import EMA, Adam, make_stabilizer
from gradcheck.paper.factorial import ADAM_WAYS, CORNERS, FACTORIAL, MEMORIES, QUESTIONS, agreement, corner
from gradcheck.paper.factorial import decide_factorial, known_adam, levels, planted, questions_of, read_factorial
from gradcheck.paper.factorial import similarity_table
from gradcheck.paper.factorial_runs import ADAM_STUDY, filtered, full_factorial, write_factorial
from gradcheck.paper.full import plan_full
from gradcheck.paper.study import FULL, cells_of, spec_of
from gradcheck.paper.study_results import as_csv
from gradcheck.runs.runs import run

SOME = {name: ADAM_WAYS[name] for name in ("plain", "0.9/0.999 rescaled", "EMA rescaled")}
TINY = replace(
    ADAM_STUDY,
    energies=(14.0,),
    steps=3,
    count=2,
    replicates=1,
    protocols=("ours",),
    ways={"nonrobust": SOME},
)


def gradients(n=20):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, 3, 4, 4, generator=generator).double() * 0.1 for _ in range(n)]


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("on", CORNERS)
def test_a_corner_is_its_formula(memory, on):
    momentum, second, correction = on
    stride = 8
    power = stride if memory == "rescaled" else 1
    b1, b2 = (0.9**power if momentum else 0.0), (0.999**power if second else 0.0)
    adam, m, v = make_stabilizer(corner(memory, *on)[1]).spanning(stride), 0.0, 0.0
    for k, g in enumerate(gradients(), 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        c1, c2 = (1 - b1**k, 1 - b2**k) if correction else (1, 1)
        assert torch.allclose(adam(g), (m / c1) / ((v / c2).sqrt() + 1e-4), rtol=1e-9)


def test_without_both_decays_the_sign_is_left():
    sign = make_stabilizer(ADAM_WAYS["sign"]["stabilizer"])
    for g in gradients(): assert torch.allclose(sign(g), g / (g.abs() + 1e-4), rtol=1e-12)


def test_what_is_the_same_has_one_name_and_one_setting():
    "The sign has one name in both memories; the paper's ADAM, rescaled, is the study's."
    names = {corner(memory, *on)[0] for memory in MEMORIES for on in CORNERS}
    assert len(names) == 13 and names < set(ADAM_WAYS)
    theirs = next(c for c in cells_of(FULL) if (c.kind, c.variant) == ("nonrobust", "adam"))
    study = replace(ADAM_STUDY, count=FULL.count)
    mine = replace(theirs, variant="0.9/0.999 rescaled")
    assert spec_of(mine, 1.0, study).key == spec_of(theirs, 1.0, FULL).key
    others = {spec_of(replace(theirs, variant=name), 1.0, study).key for name in ADAM_WAYS}
    assert len(others) == len(ADAM_WAYS)


def test_rescaled_averages_remember_the_same_stretch():
    g = gradients(1)[0]
    every, eighth = make_stabilizer("ema,decay=0.9"), make_stabilizer("ema_rescaled,decay=0.9").spanning(8)
    every(0 * g), eighth(0 * g)
    long = [every(g) for _ in range(16)][7::8]
    for a, b in zip(long, [eighth(g) for _ in range(2)]): assert torch.allclose(a, b)


@pytest.mark.parametrize("name, message", [
    ("adam,beta3=0", "beta3.*choose one of beta1, beta2, eps"),
    ("adam,beta1=1", "beta1.*'1'.*from 0 to below 1"),
    ("adam,beta2=-0.1", "beta2"),
    ("adam,beta1=nan", "beta1"),
    ("adam,beta1", "beta1"),
    ("adam,eps=0", "eps.*above 0"),
    ("adam,bias_correction=2", "0 or 1"),
    ("unit,decay=0.9", "'unit' takes no parameters"),
    ("adan,beta1=0", "Did you mean 'adam'"),
])
def test_a_parameter_that_cannot_be_is_a_sentence(name, message):
    with pytest.raises(UserError, match=message): make_stabilizer(name)


@pytest.mark.parametrize("make, name", [
    (lambda: Adam(beta1=1.0), "beta1"),
    (lambda: Adam(beta1=-1), "beta1"),
    (lambda: Adam(beta2=1.5), "beta2"),
    (lambda: Adam(eps=-1), "eps"),
    (lambda: Adam(eps=None), "eps"),
    (lambda: EMA(2.0), "decay"),
    (lambda: EMA("much"), "decay"),
])
def test_nor_can_it_be_in_python(make, name):
    with pytest.raises(UserError, match=f"the stabilizer's {name} was given as .*; give a number"): make()


def test_parameters_by_name():
    adam = make_stabilizer("adam_rescaled,beta1=0, bias_correction=1")
    assert (adam.beta1, adam.beta2, adam.bias_correction) == (0, 0.999, True)
    assert adam.spanning(2).beta2 == pytest.approx(0.999**2) and adam.spanning(2).bias_correction


def test_main_effects_in_closed_form():
    "Of y = 1 m + 2 v + 4 c + 8 m v: 1 + 8/2, 2 + 8/2 and 4, each corner counted once."
    values = {corner("rescaled", m, v, c)[0]: m + 2 * v + 4 * (c and (m or v)) + 8 * m * v for m, v, c in CORNERS}
    got = [sum(w * values[name] for name, w in q.weights.items()) for q in questions_of("rescaled")[:3]]
    # the sign has nothing to correct: a quarter of the correction goes from its own effect to neither or both
    assert got == [1 + 4 + 4 / 4, 2 + 4 + 4 / 4, 3.0]


RESCALED = [name for name in ADAM_WAYS if not name.endswith("as they are")]


def verdicts(value, **how):
    table, _ = decide_factorial(planted(value, RESCALED, **how))
    return table[table["reader"] == "judge"].set_index("short")


def test_a_planted_effect_is_found_and_none_is_none():
    found = verdicts(lambda way: 0.4 + 0.2 * ("/0.999" in way))
    assert found.loc["second moment: main effect", "verdict"] == "holds"
    assert found.loc["second moment: main effect", "effect"] == pytest.approx(0.2, abs=0.02)
    assert found.loc["momentum: main effect", "verdict"] == "no difference that matters"
    without = found.loc["… without memory of the size"]
    assert (without["verdict"], without["predicted"]) == ("does not hold", "disagrees")
    assert found.loc["ADAM without momentum, against ADAM", "predicted"] == "agrees"


def test_two_classifiers_show_nothing():
    found = verdicts(lambda way: 0.4 + 0.2 * ("/0.999" in way), replicates=2)
    assert set(found["verdict"]) == {"undecided"} and set(found["predicted"]) == {"", "open"}


def test_questions_that_the_ways_do_not_answer_are_left_out():
    table, cells = decide_factorial(planted(lambda way: 0.4, RESCALED))
    assert set(table["memory"]) == {"rescaled"} and len(table) == 2 * len(questions_of("rescaled"))
    assert len(cells) == len(table) * 5 * 4


@pytest.mark.parametrize("classes", [1, 4])
def test_a_classifier_of_which_a_cell_was_lost_is_left_out_by_name(classes):
    "The others decide, as if that classifier had never been."
    outcomes = planted(lambda way: 0.4, RESCALED, replicates=4)
    last = outcomes["replicate"] == 3
    lost = last & (outcomes["variant"] == "plain") & (outcomes["target"] < classes)
    with pytest.warns(UserWarning, match="nonrobust classifier 3 is left out .* its way 'plain' and class 0"):
        found = decide_factorial(outcomes[~lost])
    for mine, expected in zip(found, decide_factorial(outcomes[~last])): pd.testing.assert_frame_equal(mine, expected)


def test_every_question_weighs_ways_against_ways():
    for q in QUESTIONS:
        assert sum(q.weights.values()) == pytest.approx(0) and set(q.weights) <= set(ADAM_WAYS)
        if "main" not in q.short: assert sorted(q.weights.values()) == [-1, 1]
    assert {agreement(QUESTIONS[3], v) for v in ("undecided", "depends on the class")} == {"open"}


def test_stabilised_afterwards_is_the_stabilizer_on_the_runs_own_gradients():
    "Of the plain run itself, afterwards is its own similarity."
    cell = next(c for c in cells_of(TINY) if c.variant == "plain")
    spec = spec_of(cell, 1.0, TINY, steps=5)
    found = filtered(spec, SOME)
    assert torch.allclose(found["plain"], run(spec).trace["cosine"].nanmean(0), atol=1e-4)
    assert not torch.allclose(found["plain"], found["0.9/0.999 rescaled"], atol=1e-3)


def test_the_smallest_factorial_runs_and_resumes(tmp_path, monkeypatch, only_engine):
    monkeypatch.setattr("gradcheck.paper.study.PILOT_IMAGES", 1)
    said = []
    with only_engine() as engine: folder = full_factorial(tmp_path / "a", TINY, engine=engine, report=said.append)
    again = full_factorial(tmp_path / "b", TINY, report=said.append)
    assert {p.name for p in folder.iterdir()} == {"outcomes.csv.gz", "afterwards.csv.gz", "claims.csv", "adam.json"}
    for path in folder.iterdir(): assert (again / path.name).read_bytes() == path.read_bytes(), path.name
    tables = read_factorial(folder)
    assert len(tables["outcomes"]) == 3 * 4 * 2 and set(tables["afterwards"]["variant"]) == set(SOME)
    assert set(pd.read_csv(folder / "claims.csv")["verdict"]) == {"undecided"}            # one classifier
    assert json.loads((folder / "adam.json").read_text(encoding="utf-8"))["study"]["steps"] == 3
    similar = similarity_table(**tables, energy=14.0).set_index("variant")
    assert similar.loc["plain", "similarity"] == pytest.approx(similar.loc["plain", "raw"], abs=1e-3)
    assert similar.loc["plain", "afterwards"] == pytest.approx(similar.loc["plain", "raw"], abs=1e-2)
    assert np.isfinite(similar.select_dtypes("number").to_numpy()).all()
    assert said[-1].endswith(str(again)) and len(said) == 2 * (len(pd.read_csv(folder / "claims.csv")) + 1)


def test_parts_on_which_nothing_can_be_decided_leave_no_old_verdicts_beside_them(tmp_path):
    outcomes = planted(lambda way: 0.4, RESCALED, replicates=1)
    tables = dict(outcomes=outcomes, afterwards=outcomes.drop_duplicates([*FACTORIAL["afterwards"][:-1]]))
    write_factorial(tables, {}, tmp_path)
    with pytest.raises(UserError, match="gaps"):
        write_factorial(tables | dict(outcomes=outcomes[1:]), {}, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"outcomes.csv.gz", "afterwards.csv.gz"}


def test_the_repositorys_claims_are_what_its_outcomes_say():
    table, _ = decide_factorial(read_factorial()["outcomes"])
    assert as_csv(table) == (reference_folder("adam") / "claims.csv").read_text(encoding="utf-8")
    study = known_adam()["study"]
    assert set(study["protocols"]) == set(table["protocol"]) and study["replicates"] == table["classifiers"].max()


def test_the_command_asks_for_adams_parts(cli, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("gradcheck.paper.factorial_runs.full_factorial", lambda out, **how: asked.append(out))
    monkeypatch.setattr("gradcheck.paper.full.plan_full", lambda study, **how: f"a plan of {study.steps} steps")
    assert cli("reproduce", "adam_apart", "--full", "--plan")[1] == "a plan of 50 steps\n" and not asked
    assert cli("reproduce", "adam_apart", "--full", "--out", tmp_path)[0] == 0 and asked == [tmp_path / "adam"]
    assert cli("reproduce", "claims", "adam_apart", "--full")[0] == 2


def test_a_plan_without_long_runs_counts_none(own_cache):
    total = 3 * 4 * (5 * 4 * 3 + 2 * 3)
    assert f"{total:,} image-steps" in plan_full(TINY)


def test_a_probabilitys_interval_ends_at_0_and_1():
    "Ways of which one class alone is ever reached."
    outcomes = planted(lambda way: 0.3, replicates=3)
    outcomes["judge"] = outcomes["judge"].where(outcomes["target"] == 0, 0.0).clip(0, 1)
    found = levels(outcomes, "judge")
    assert (found["low"] == 0).all() and (found["high"] <= 1).all() and (found["mean"] < found["high"]).all()
