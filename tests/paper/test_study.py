"""The study over classifiers and classes: its evidence in closed form, its files, and one run of it at the smallest
size."""
import json
from dataclasses import replace
from functools import partial
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from gradcheck.core import UserError
from gradcheck.guidance.sampling import NonFinite
from gradcheck.models.catalogue import classifier_card
from gradcheck.paper.full import against_reference, check_full, full, plan_full, still_to_do
from gradcheck.paper.page import markdown, summary
from gradcheck.paper.quirks import PROTOCOLS, STUDIED
from gradcheck.paper.replicated import CELL_CLAIMS, HEADLINE, NEARER, READ, SEEN, WHOLE, decide_study
from gradcheck.paper.study import COUPLED, FULL, SEEDS, STUDIES, WAYS, Study, cells_of, finite, folder_for
from gradcheck.paper.study import pilot_of, replicates, scales_of, spec_of, study_of
from gradcheck.paper.study_evidence import CELL, along_energies, at_equal_energy, cube
from gradcheck.paper.study_runs import base_rates, qualities
from gradcheck.paper.study_results import packed, read_study, write_files, write_study
from gradcheck.runs.chunks import loose_folder
from gradcheck.runs.quality import real_quality
from gradcheck.runs.runs import chunk_path
from gradcheck.runs.specs import PROBE
from gradcheck.runs.verdicts import weighted

TINY = Study(
    energies=(5.0, 20.0),
    steps=2,
    count=2,
    long_steps=3,
    long_count=2,
    replicates=1,
    protocols=("ours",),
)
RAISED = "x̂₀-prediction raises the target probability with non-robust classifiers"


def planted(lift, replicates=5, classes=4, images=6, protocols=("ours",), seed=0):
    "Tables of a study in which x0-hat-prediction lifts probability and similarity by `lift(replicate, class)`."
    rng = np.random.default_rng(seed)
    found = {"outcomes": [], "similarities": [], "quality": [], "base": []}
    for protocol in protocols:
        for k in range(classes):
            found["base"].append(pd.DataFrame(dict(protocol=protocol, target=k, image=range(64), judge=0.3)))
        ways = [(kind, variant) for kind, variants in WAYS.items() for variant in variants]
        for (kind, variant), r, k in product(ways, range(replicates), range(classes)):
            where = dict(protocol=protocol, kind=kind, replicate=r, target=k, variant=variant, image=range(images))
            up = lift(r, k) if variant in ("x0_hat", "both") else 0.0
            said = 0.4 + up + rng.normal(0, 0.05, images)
            for e in FULL.energies:
                rows = dict(energy=e, injected=e, guide=said, judge=said, guess=k, seen=k, whole=said, oracle=said)
                found["outcomes"].append(pd.DataFrame(where | rows))
            near = dict(measure="asinh KID, target", value=-said.mean())
            found["quality"].append(pd.DataFrame([{c: where[c] for c in CELL} | near]))
            same = dict.fromkeys(("similarity", "raw", "shuffled", "weighted", "raw_weighted"), said)
            found["similarities"].append(pd.DataFrame(where | same))
    return {name: pd.concat(parts, ignore_index=True) for name, parts in found.items()}


def verdict_of(tables, claim=RAISED, protocol="ours"):
    claims, _ = decide_study(*tables.values())
    row = claims[(claims["claim"] == claim) & (claims["protocol"] == protocol)].iloc[0]
    return row["verdict"], row["effect"]


def test_an_effect_in_all_cells_holds_and_none_matters_not():
    verdict, effect = verdict_of(planted(lambda r, k: 0.3))
    assert verdict == "holds" and effect == pytest.approx(0.3, abs=0.02)
    assert verdict_of(planted(lambda r, k: 0.0))[0] == "no difference that matters"
    assert verdict_of(planted(lambda r, k: -0.3))[0] == "does not hold"


def test_a_sign_that_differs_between_classes_is_said():
    assert verdict_of(planted(lambda r, k: 0.3 if k % 2 else -0.3))[0] == "depends on the class"


def test_more_whole_balls_and_nearer_pictures_hold_where_planted():
    claims, _ = decide_study(**planted(lambda r, k: 0.3))
    said = claims[claims["reader"] == "judge"].set_index("claim")["verdict"]
    for claim in (*WHOLE, *NEARER):
        assert said[claim.text] == ("holds" if "x̂₀" in claim.text else "no difference that matters")


def test_two_classifiers_hold_nothing():
    assert verdict_of(planted(lambda r, k: 0.3, replicates=2))[0] == "undecided"


def test_the_guides_word_and_the_judges_are_told_apart():
    tables = planted(lambda r, k: 0.3, protocols=("authors",))
    tables["outcomes"]["judge"] = 0.5
    claims, cells = decide_study(*tables.values())
    mine = claims[(claims["claim"] == RAISED) & (claims["protocol"] == "authors")].set_index("reader")
    assert mine["verdict"].to_dict() == dict(guide="holds", judge="no difference that matters", oracle="holds")
    assert len(cells[cells["claim"] == RAISED]) == 3 * 5 * 4


def test_outcomes_at_equal_energy_in_closed_form():
    "A probability linear in log energy is the line's mean, whatever was injected."
    injected = {1.0: 0.5, 4.0: 6.0, 16.0: 40.0}
    rows = [
        dict(image=i, energy=e, injected=x, judge=0.1 * np.log(x) + i) for e, x in injected.items() for i in range(3)
    ]
    got = along_energies(pd.DataFrame(rows), "judge", [1.0, 4.0, 16.0])
    assert got["judge"] == pytest.approx(0.1 * np.log([1, 4, 16]).mean() + np.arange(3))


def test_an_image_twice_is_refused_not_averaged():
    outcomes = read_study()["outcomes"]
    twice = pd.concat([outcomes, outcomes.iloc[:2]], ignore_index=True)
    with pytest.raises(UserError, match="2 outcomes twice"): at_equal_energy(twice, "judge")


def test_gaps_are_no_zeros():
    rows = pd.DataFrame([dict(replicate=r, target=k, image=i, x=r + k + i) for r, k, i in product((0, 1), repeat=3)])
    assert cube(rows, "x")[1, 0].tolist() == [1, 2]
    with pytest.raises(UserError, match="gaps"): cube(rows.iloc[:-1], "x")
    with pytest.raises(UserError, match="gaps"): cube(rows.assign(x=np.nan), "x")


def test_a_similarity_weighted_by_energy():
    cosine = torch.tensor([[torch.nan, torch.nan], [1.0, 0.5], [0.0, torch.nan]])
    energy = torch.tensor([[5.0, 5.0], [3.0, 1.0], [1.0, 7.0]])
    assert weighted(cosine, energy).tolist() == [0.75, 0.5]


def test_a_setting_that_leaves_the_numbers_is_named_and_left_out():
    def run(specs):
        for label, scale in specs.items():
            if scale > 10: raise NonFinite(f"the gradient at scale {scale} is not finite.").of(label)
        return {label: scale + 1 for label, scale in specs.items()}

    with pytest.warns(UserWarning) as said: kept = finite(run, dict(a=1, b=20, c=2, d=30))
    assert kept == dict(a=2, c=3)
    assert [str(w.message)[:31] for w in said] == [f"{k} is left out of the study: the" for k in "bd"]
    with pytest.raises(NonFinite): finite(lambda specs: run(dict(e=11)), dict(a=1))     # not one of those asked for


def test_a_replicate_that_cannot_be_read_is_named_and_left_out(monkeypatch):
    assert len(replicates("robust", "laptop/robust")) == len(SEEDS) + 1
    def seeds(*of): monkeypatch.setattr("gradcheck.paper.study.SEEDS", of)
    seeds(2, 77)
    with pytest.warns(UserWarning, match="robust_77.*left out"): names = replicates("robust", "laptop/robust")
    assert names == {0: "laptop/robust", 1: "data/replicates/robust_2.safetensors"}
    seeds(77, 2)
    with pytest.warns(UserWarning, match="robust_77.*left out"): names = replicates("robust", "laptop/robust")
    assert names == {0: "laptop/robust", 2: "data/replicates/robust_2.safetensors"}      # its own number still
    with pytest.warns(UserWarning):
        assert {c.replicate for c in cells_of(replace(FULL, replicates=3)) if c.kind == "robust"} == {0, 2}


def test_the_authors_protocol_is_theirs():
    cell = next(c for c in cells_of(replace(FULL, replicates=1)) if c.protocol == "authors" and c.variant == "both")
    spec = spec_of(cell, 1.0, FULL)
    assert (spec.objective, spec.start, spec.state) == ("logit", "standard", "float16")
    assert spec.fresh_stabilizer().beta1 == pytest.approx(0.9**8)


def test_files_are_read_as_written_and_damage_is_a_sentence(tmp_path):
    tables = planted(lambda r, k: 0.3, protocols=("authors", "ours"))
    folder = write_study(tables, dict(study="planted"), tmp_path / "study")
    again = read_study(folder)
    for name, table in tables.items(): assert packed(again[name]) == packed(table)
    decided = write_study(again, dict(study="planted"), tmp_path / "again") / "claims.csv"
    assert decided.read_bytes() == (folder / "claims.csv").read_bytes()
    table = pd.read_csv(folder / "claims.csv")
    assert len(table) == 2 * len(CELL_CLAIMS) + len(READ) + 2 * len(SEEN)
    assert set(table.loc[table["claim"] == RAISED, "reader"]) == {"guide", "judge", "oracle"}
    rows = summary(table)
    assert [r["claim"] for r in rows] == [c.text for c in CELL_CLAIMS if c.text in HEADLINE] and len(rows) <= 6
    assert markdown(rows).count("\n") == len(rows) + 1
    path = folder / "outcomes.csv.gz"
    for damaged in (path.read_bytes()[:-9], b"", b"a,b\n", packed(tables["outcomes"].drop(columns="judge"))):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="outcomes.csv.gz"): read_study(folder)


def test_numbers_on_which_nothing_can_be_decided_leave_no_old_verdicts_beside_them(tmp_path):
    tables = planted(lambda r, k: 0.3, replicates=1)
    folder = write_study(tables, dict(study="planted"), tmp_path)
    assert {"study.json", "claims.csv", "cells.csv"} < {path.name for path in folder.iterdir()}
    with pytest.raises(UserError, match="gaps"):
        write_study(tables | dict(outcomes=tables["outcomes"][1:]), dict(study="another"), folder)
    assert {path.name for path in folder.iterdir()} == {f"{name}.csv.gz" for name in tables}


@pytest.mark.parametrize("name, damage, said", [
    ("outcomes", lambda t: t.assign(judge=7.0), "has 7 as judge, which is not within 0 to 1"),
    ("outcomes", lambda t: t.assign(injected=-3.0), "has -3 as injected"),
    ("outcomes", lambda t: t.assign(judge=t["judge"].astype(str).where(t.index > 0, "0,5")), "judge what is no number"),
    ("outcomes", lambda t: t.assign(replicate="one"), "replicate what is no number"),
    ("outcomes", lambda t: t.assign(protocol="mine"), "a protocol 'mine', which is none of coupled, authors, ours"),
    ("outcomes", lambda t: pd.concat([t, t[:3]]), "3 rows twice"),
    ("base", lambda t: pd.concat([t, t[:1]]), "1 rows twice"),
    ("similarities", lambda t: t.assign(similarity=np.inf), "no finite number"),
])
def test_what_cannot_be_is_refused(tmp_path, name, damage, said):
    tables = planted(lambda r, k: 0.3)
    write_files(tables, {}, {}, tmp_path)
    assert read_study(tmp_path).keys() == tables.keys()
    (tmp_path / f"{name}.csv.gz").write_bytes(packed(damage(tables[name])))
    with pytest.raises(UserError, match=said): read_study(tmp_path)


@pytest.mark.parametrize("name, damage, said", [
    ("outcomes", lambda t: t.replace({"variant": {"plain": "plane"}}), "no 'judge' of a way"),
    ("base", lambda t: t[t["image"] % 2 == 0], "images of a cell"),
])
def test_what_is_missing_is_a_sentence(name, damage, said):
    tables = planted(lambda r, k: 0.3)
    with pytest.raises(UserError, match=said): decide_study(**tables | {name: damage(tables[name])})


@pytest.mark.parametrize("name, energies", [
    ("outcomes", FULL.energies),
    ("outcomes", FULL.energies[-1:]),
    ("similarities", None),
    ("quality", None),
], ids=["outcomes", "one energy", "similarities", "quality"])
def test_a_classifier_of_which_a_cell_was_lost_is_left_out_by_name(name, energies):
    "A run that left the finite numbers is in no table; the others decide, as if that classifier had never been."
    tables = planted(lambda r, k: 0.3, replicates=4, images=4)
    def of(t): return (t["kind"] == "nonrobust") & (t["replicate"] == 3)
    without = {k: t if k == "base" else t[~of(t)] for k, t in tables.items()}
    gone = of(tables[name]) & (tables[name]["variant"] == "adam") & (tables[name]["target"] == 2)
    if energies: gone &= tables[name]["energy"].isin(energies)
    at = f" at the energy {energies[0]:g}" if energies else ""
    with pytest.warns(UserWarning, match=rf"nonrobust classifier 3 is left out .* its way 'adam' and class 2{at}\."):
        claims, cells = decide_study(**tables | {name: tables[name][~gone]})
    expected = decide_study(**without)
    pd.testing.assert_frame_equal(claims, expected[0])
    pd.testing.assert_frame_equal(cells, expected[1])


def test_a_cell_that_lost_an_energy_has_no_quality(monkeypatch):
    "Its pictures at weak guidance, which are the nearer ones, do not stand for all."
    monkeypatch.setattr("gradcheck.paper.study_runs.quality_of_cell", lambda cell, found: [dict(cell=cell)])
    along = [(cell, energy, None, None) for cell in "ab" for energy in TINY.energies]
    assert qualities(along, TINY)["cell"].tolist() == ["a", "b"]
    assert qualities(along[:-1], TINY)["cell"].tolist() == ["a"]


def test_base_rates_are_of_the_noise_of_the_study(monkeypatch):
    "An image without guidance starts as the guided one with which it is paired."
    def seeds(specs, *_):
        assert {spec.seed for spec in specs.values()} == {TINY.seed + 1}
        return {label: SimpleNamespace(judge=torch.full((64, 4), 0.25)) for label in specs}
    monkeypatch.setattr("gradcheck.paper.study_runs.run_batches", seeds)
    assert len(base_rates(replace(TINY, seed=TINY.seed + 1))) == 64 * 4


@pytest.mark.parametrize("figures, preset, seed, params", [
    ((), "laptop", 0, {}),
    (("claims", "figure_1"), "laptop", 0, {}),
    (("claims",), "smoke", 0, {}),
    (("claims",), "laptop", 3, {}),
    (("claims",), "laptop", 0, dict(steps=4)),
])
def test_the_full_study_refuses_what_it_would_not_hear(figures, preset, seed, params):
    with pytest.raises(UserError, match="claims --full"): check_full(figures, preset, seed, params)
    assert check_full(("claims",), "laptop", 0, {}) is None
    with pytest.raises(UserError, match="--write-back was given"):
        check_full(("claims",), "laptop", 0, {}, write_back=True, again=False)


def test_the_authors_draws_are_a_study_of_their_own(tmp_path):
    cells = cells_of(COUPLED)
    names = [(kind, f"coupled/{kind}") for kind in WAYS]
    names += [(kind, f"data/replicates/coupled/{kind}_{seed}.safetensors") for kind, seed in product(WAYS, SEEDS)]
    assert {(c.protocol, c.kind, c.classifier) for c in cells} == {("coupled", *name) for name in names}
    shape = spec_of(cells[0], 1.0, COUPLED).shape
    assert {classifier_card(name, shape)["data"]["draws"] for _, name in names} == {"coupled"}
    spec, other = (spec_of(cells_of(study)[0], 1.0, study) for study in (COUPLED, FULL))
    assert (spec.denoiser, other.denoiser) == ("coupled/ddpm", "laptop/ddpm") and spec.key != other.key
    assert replace(spec, denoiser=other.denoiser, classifier=other.classifier) == other       # nothing else differs
    assert study_of() == study_of("corrected") == (FULL, "study") and study_of("draws=paper") == (COUPLED, "coupled")
    for mode in ("paper", "draws=paper,start=paper"):
        with pytest.raises(UserError, match="leave out --full"): study_of(mode)
    assert check_full(("claims",), "laptop", 0, dict(mode="draws=paper")) is None
    with pytest.raises(UserError, match="mode=draws=paper"):
        check_full(("adam_apart",), "laptop", 0, dict(mode="draws=paper"))
    assert [folder_for(p) for p in (["coupled"], ["authors", "ours"], ["unheard of"])] == ["coupled", "study", "study"]
    assert {*STUDIES} == {*STUDIED.values()} and {p for s in STUDIES.values() for p in s.protocols} == {*PROTOCOLS}
    with pytest.raises(UserError, match="reproduce claims --mode draws=paper --full"): read_study(tmp_path / "coupled")


def test_real_pictures_are_drawn_as_the_models_pictures_were():
    independent, coupled = (real_quality(0, 120, draws=draws)["target"] for draws in ("independent", "coupled"))
    assert (independent.seen["label"] == 0).all() and (coupled.seen["label"] == 0).all()
    assert len({*coupled.seen["x"] % 4}) == 1 < len({*independent.seen["x"] % 4})        # their place tells the class


def test_claims_are_decided_under_the_authors_draws_too():
    table, cells = decide_study(**planted(lambda r, k: 0.3, replicates=3, protocols=("coupled",)))
    assert {*table["reader"]} == {"guide", "judge", "oracle"} and {*cells["protocol"]} == {"coupled"}
    row = table[(table["claim"] == RAISED) & (table["reader"] == "guide")].iloc[0]
    assert row["classifiers"] == 3 and row["effect"] == pytest.approx(0.3, abs=0.05)
    assert [list(r)[1:2] for r in summary(table)][:1] == [["the authors' protocol on their draws"]]


def test_the_smallest_study_runs_and_resumes(tmp_path, monkeypatch, only_engine):
    "Of two classes, which is all that it needs, by pilots of one image; all by the engine that is given."
    monkeypatch.setattr("gradcheck.paper.study.PILOT_IMAGES", 1)
    monkeypatch.setattr("gradcheck.paper.study_runs.real_quality", partial(real_quality, count=100))
    two = lambda study: [cell for cell in cells_of(study) if cell.target < 2]
    monkeypatch.setattr("gradcheck.paper.full.cells_of", two)
    monkeypatch.setattr("gradcheck.paper.full.base_rates", lambda *of: base_rates(*of).query("target < 2"))
    said = []
    with only_engine() as engine: folder = full(tmp_path / "a", TINY, engine=engine, report=said.append)
    known = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    assert {c["kind"] for c in known["classifiers"]} == {"robust", "nonrobust"} and known["study"]["steps"] == 2
    assert "raises the target probability" in said[0]
    again = full(tmp_path / "b", TINY, report=said.append)
    for path in folder.iterdir(): assert (again / path.name).read_bytes() == path.read_bytes(), path.name
    claims = pd.read_csv(folder / "claims.csv")
    assert "holds" not in set(claims["verdict"])                      # one classifier of each kind
    assert against_reference(claims)[-1].startswith(("compared with", "there is no study"))
    assert " 0 image-steps that are not in the cache" in plan_full(TINY)
    cell = cells_of(TINY)[0]
    scale = scales_of([cell], TINY)[cell][0]
    for spec in (spec_of(cell, scale, TINY), pilot_of(cell, PROBE, TINY)):
        assert not still_to_do(cell, TINY)
        path = chunk_path(spec, range(spec.count), loose_folder())
        path.rename(path.with_suffix(".away"))
        missing = still_to_do(cell, TINY)
        assert spec in missing and len(missing) == (1 if spec.scale == scale else 1 + 4 + 2 + 1)
        path.with_suffix(".away").rename(path)


def test_the_plan_counts_what_a_study_computes(own_cache, monkeypatch):
    "By the pace of images as they come, as the runs go."
    asked = []

    def pace(spec, images, device, micro_batch):
        asked.append((images, micro_batch))
        return 0.01
    monkeypatch.setattr("gradcheck.paper.full.seconds_per_image_step", pace)
    cells = cells_of(TINY)
    total = len(cells) * (5 * 4 * 2 + 2 * 3 + 2 * 2 * 2)
    assert f"{total:,} image-steps" in plan_full(TINY)
    assert {*asked} == {(4, None), (2, None)}


def test_the_command_asks_for_the_study_and_for_nothing_else(cli, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("gradcheck.paper.full.full", lambda out, **how: asked.append(out))
    monkeypatch.setattr("gradcheck.paper.full.plan_full", lambda **how: "a plan")
    assert cli("reproduce", "claims", "--full", "--plan")[1] == "a plan\n" and not asked
    assert cli("reproduce", "claims", "--full", "--out", tmp_path)[0] == 0 and asked == [tmp_path / "study"]
    assert cli("reproduce", "claims", "--full", "--mode", "draws=paper", "--out", tmp_path)[0] == 0
    assert asked[1:] == [tmp_path / "coupled"]
    code, _, err = cli("reproduce", "claims", "--full", "--mode", "paper", "--out", tmp_path)
    assert code == 2 and "leave out --full" in err and len(asked) == 2


@pytest.mark.parametrize("figure", ["claims", "adam_apart", "frontiers"])
@pytest.mark.parametrize("option", [["--memory", "8GB"], ["--checkpointing"], ["--dask", "local"]])
def test_the_plan_of_a_study_refuses_what_it_does_not_hear(cli, monkeypatch, figure, option):
    for name in ("full.plan_full", "frontier_runs.plan_frontiers"):
        monkeypatch.setattr(f"gradcheck.paper.{name}", lambda **how: pytest.fail("planned"))
    code, _, err = cli("reproduce", figure, "--full", "--plan", *option)
    assert code == 2 and f"{option[0]} was given" in err and err.count("\n") == 1


@pytest.mark.parametrize("parameters, made", [({}, True), (dict(mode="paper"), False), (dict(target=2), False)])
def test_what_depends_on_no_parameter_is_not_made_again_under_others(parameters, made):
    from gradcheck.paper.reproduce import default_figures
    assert ("study" in default_figures(parameters)) is made
