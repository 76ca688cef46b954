"""A study held against another one: image by image, verdict by verdict; and what cannot be held."""
import json

import pytest
from test_study import RAISED, planted

from gradcheck.core import UserError, project_root
from gradcheck.paper import full
from gradcheck.paper.replicated import NEARER
from gradcheck.paper.study import FULL, Study, cells_of
from gradcheck.paper.study_compare import compare_study, holds_study, row_of
from gradcheck.paper.study_results import packed, read_study

SIZES = dict(ways=dict(robust=dict(plain={})), steps=50, long_steps=400, seed=0, pilot_seed=1_000_000)


def known_of(replicates=5, sha="a" * 64, **changes):
    classifiers = [dict(kind="robust", replicate=k, sha256=sha) for k in range(replicates)]
    protocols = dict(authors="start=paper", ours="corrected")
    return dict(study=SIZES | changes, protocols=protocols, classifiers=classifiers, machine="A CPU")


def laid(tables, known, folder):
    "A study as `write_study` leaves it, but for what is decided on it."
    folder.mkdir()
    for name, table in tables.items(): (folder / f"{name}.csv.gz").write_bytes(packed(table))
    (folder / "study.json").write_text(json.dumps(known), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return laid(planted(lambda r, k: 0.3, 4, images=4), known_of(), tmp_path_factory.mktemp("study") / "reference")


def contents(folder): return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_the_same_study_is_identical(reference, cli):
    before = contents(reference)
    code, out, _ = cli("compare", reference, "--reference", reference)
    assert code == 0 and "4 of 4 tables identical" in out and "0 of " in out and "A CPU" in out
    assert contents(reference) == before and holds_study(reference) and not holds_study(reference.parent)


def test_a_verdict_that_changed_is_said_first_and_is_exit_code_1(reference, cli, tmp_path):
    mine = laid(planted(lambda r, k: 0.0, 4, images=4), known_of(), tmp_path / "mine")
    code, out, _ = cli("compare", mine, "--reference", reference)
    changed = [line for line in out.splitlines() if line.startswith("CHANGED  holds ")]
    assert code == 1 and any(RAISED in line for line in changed) and "guide differs by 0.3 at most" in out
    rows = dict(line.split()[:3:2] for line in out.splitlines() if line.split()[:1] == ["outcomes"])
    assert int(rows["outcomes"]) == 4 * 4 * 4 * 6 * 6 // 2                # no variant but x0-hat and both was lifted


def test_a_part_is_held_against_the_same_part(reference, tmp_path):
    tables = read_study(reference)
    part = {name: t[t["replicate"] < 3] if "replicate" in t else t for name, t in tables.items()}
    c = compare_study(laid(part, known_of(3), tmp_path / "part"), reference)
    assert not c.changed and (c.tables["rows"] == c.tables["identical"]).all()
    rows = c.tables.set_index("table")["reference_only"]
    assert rows["outcomes"] == (tables["outcomes"]["replicate"] > 2).sum() and rows["base"] == 0


@pytest.mark.parametrize("column, most", [("image", 1), ("energy", 14.0)])
def test_nearness_of_other_images_or_energies_is_not_compared(reference, tmp_path, column, most):
    "It is one number a cell, which cannot be cut to what both have."
    tables = read_study(reference)
    def with_other_quality(outcomes): return tables | dict(
        outcomes=outcomes,
        quality=tables["quality"].assign(value=-tables["quality"]["value"]),
    )
    few = tables["outcomes"][tables["outcomes"][column] <= most]
    part = compare_study(laid(with_other_quality(few), known_of(), tmp_path / "part"), reference)
    whole = compare_study(laid(with_other_quality(tables["outcomes"]), known_of(), tmp_path / "whole"), reference)
    def near(c): return c.claims["claim"].str.startswith(tuple(claim.text for claim in NEARER))
    assert not near(part).any() and not part.changed and "no verdict on nearness" in part.text
    assert whole.claims[near(whole)]["changed"].any() and "nearness" not in whole.text.splitlines()[-2]


def test_the_last_digit_that_is_kept_may_differ(reference):
    there = read_study(reference)["outcomes"]
    assert row_of("outcomes", there, there.assign(judge=there["judge"] * (1 + 1e-5)))["identical"] == len(there)
    assert row_of("outcomes", there, there.assign(guess=there["guess"] + 1))["identical"] == 0


@pytest.mark.parametrize("known, message", [
    (known_of(steps=100), "steps 100, its reference with 50"),
    (known_of(seed=1), "seed 1"),
    (known_of(sha="b" * 64), "robust classifier 0 is bbbbbbbbbbbb here"),
    (known_of(ways={"robust": {}}), "ways"),
    (known_of() | dict(protocols=dict(ours="start=paper")), "protocol 'ours' is 'start=paper', its reference's"),
    (known_of(replicates=0), "does not say what was studied"),
    (known_of(sha=5), "does not say what was studied"),
    (known_of() | dict(protocols=None), "does not say what was studied"),
    ({}, "does not say what was studied"),
    ([], "study.json"),
])
def test_another_study_is_refused_and_nothing_is_written(reference, tmp_path, known, message):
    mine = laid(read_study(reference), known, tmp_path / "mine")
    before = contents(mine)
    with pytest.raises(UserError, match=message): compare_study(mine, reference)
    assert contents(mine) == before


@pytest.mark.parametrize("name, harm, message", [
    ("study.json", lambda p: p.unlink(), "study.json"),
    ("study.json", lambda p: p.write_text("{", encoding="utf-8"), "study.json"),
    ("outcomes.csv.gz", lambda p: p.write_bytes(p.read_bytes()[:100]), "cannot be read"),
    ("quality.csv.gz", lambda p: p.unlink(), "cannot be read"),
])
def test_what_is_half_written_or_damaged_is_a_sentence(reference, cli, tmp_path, name, harm, message):
    mine = laid(read_study(reference), known_of(), tmp_path / "mine")
    harm(mine / name)
    code, _, err = cli("compare", mine, "--reference", reference)
    assert code == 2 and message in err and err.count("\n") == 1


def test_nothing_in_common_is_said(reference, tmp_path):
    tables = {name: t.assign(target=t["target"] + 7) for name, t in read_study(reference).items()}
    folder = laid(tables, known_of(), tmp_path / "mine")
    with pytest.raises(UserError, match="no cell in common"): compare_study(folder, reference)


def test_the_figure_of_the_study_is_no_study(tmp_path):
    (tmp_path / "study.json").write_text("{}", encoding="utf-8")
    (tmp_path / "study.csv").write_text("claim,verdict\n", encoding="utf-8")
    assert not holds_study(tmp_path)


def test_a_study_json_has_what_is_asked_of_it():
    known = json.loads(json.dumps(full.known_of(cells_of(Study(replicates=1)), FULL)))
    assert {*SIZES} <= {*known["study"]} and all({"kind", "replicate", "sha256"} <= {*c} for c in known["classifiers"])


def test_a_study_on_the_authors_draws_is_held_against_one_on_theirs(reference, tmp_path, monkeypatch):
    known = known_of(3) | dict(protocols=dict(coupled="start=paper,draws=paper"))
    theirs = laid(planted(lambda r, k: 0.3, 3, images=4, protocols=("coupled",)), known, tmp_path / "coupled")
    monkeypatch.setattr("gradcheck.paper.study_compare.reference_folder", lambda name: tmp_path / name)
    assert compare_study(theirs).reference == str(theirs) and not compare_study(theirs).changed
    with pytest.raises(UserError, match="no cell in common"): compare_study(theirs, reference)


@pytest.mark.parametrize("name, figure", [("adam", "adam_apart"), ("frontiers", "frontiers")])
def test_another_whole_study_is_told_by_its_name(cli, reference, name, figure):
    other = project_root() / "data" / "reference" / name
    for given in ((other,), (reference, "--reference", other)):
        code, _, err = cli("compare", *given)
        assert code == 2 and f"holds the whole study of {figure}, which compare does not know" in err
        assert "claims --full" not in err and err.count("\n") == 1
