"""Numbers against reference numbers: the same, within their intervals, verdicts that changed; and what is refused."""
import json

import numpy as np
import pandas as pd
import pytest

from gradcheck.core import UserError
from gradcheck.paper.compare import compare, thinned, write_reference
from gradcheck.runs.records import against, bounds, read_sidecar, setting_of

DIGESTS = dict(denoiser="d" * 64, classifier="c" * 64)
RUN = dict(denoiser="laptop/ddpm", classifier="laptop/nonrobust", count=64, steps=400, seed=0, digests=DIGESTS)
CLAIMS = pd.DataFrame([
    dict(claim="A raises it", effect=0.3, low=0.2, high=0.4, verdict="holds", beside=""),
    dict(claim="B raises it", effect=0.0, low=-0.1, high=0.1, verdict="undecided", beside=""),
])
CURVES = pd.DataFrame(dict(curve="robust", t=np.arange(398, -1, -1), mean=0.5, std=0.2, images=64))


def plant(folder, figure, table, run=RUN, **changes):
    "A figure as `OpenFigure.save` leaves it, without its picture."
    sidecar = dict(
        figure=figure,
        caption="A caption",
        source="ours",
        protocol="not known",
        parameters=dict(preset="laptop", seed=0, target=0, steps=None),
        runs={"robust": run},
        seconds=1.0,
        revision="0" * 40,
        libraries=dict(torch="2.13.0"),
        device="cpu",
        threads=1,
        cpu="A CPU",
        instructions="AVX512",
    )
    folder.mkdir(exist_ok=True)
    (folder / f"{figure}.json").write_text(json.dumps(sidecar | changes), encoding="utf-8")
    (folder / f"{figure}.csv").write_text(table.to_csv(index=False), encoding="utf-8")


@pytest.fixture
def results(tmp_path):
    plant(tmp_path / "results", "figure_1", CURVES)
    plant(tmp_path / "results", "claims", CLAIMS)
    return tmp_path / "results"


@pytest.fixture
def reference(results, tmp_path):
    return write_reference(results, tmp_path / "reference")


def contents(folder): return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_the_same_numbers_are_identical(results, reference):
    c = compare(results, reference)
    assert c.figures["outcome"].tolist() == ["identical"] * 2 and not c.changed
    assert "figures 2 identical; 0 of 2 verdicts changed." in c.summary and c.summary in c.text
    assert c.text.count("A CPU, AVX512, torch 2.13.0") == 2 and "\n" not in c.summary


def test_a_curve_within_its_standard_error_and_outside(results, reference):
    plant(results, "figure_1", CURVES.assign(mean=0.5 + 0.04), instructions="AVX2")      # 1.96 * 0.2 / 8 = 0.049
    c = compare(results, reference)
    assert c.figures.set_index("figure")["outcome"]["figure_1"] == "within its interval" and "AVX2" in c.text
    plant(results, "figure_1", CURVES.assign(mean=0.5 + 0.06))
    row = compare(results, reference).figures.set_index("figure").loc["figure_1"]
    assert row["outcome"] == "different" and row["outside"] == row["numbers"] == 20
    assert "0.56, reference 0.5 (0.451 to 0.549)" in row["note"]


def test_one_number_in_twenty_may_lie_outside(results, reference):
    moved = CURVES.assign(mean=np.where(CURVES["t"] == 398, 0.9, 0.5))
    plant(results, "figure_1", moved)
    assert compare(results, reference).figures["outcome"][0] == "within its interval"
    plant(results, "figure_1", moved.assign(mean=np.where(CURVES["t"] > 370, 0.9, 0.5)))
    assert compare(results, reference).figures["outcome"][0] == "different"


def test_a_changed_verdict_is_told_with_both_effects(results, reference):
    other = CLAIMS.copy()
    other.loc[1, ["effect", "low", "high", "verdict"]] = [0.06, 0.01, 0.11, "holds"]
    plant(results, "claims", other)
    c = compare(results, reference)
    assert c.changed and "1 of 2 verdicts changed" in c.summary
    assert "CHANGED  undecided +0.000 (-0.100 to +0.100) -> holds +0.060 (+0.010 to +0.110): B raises it" in c.text
    assert c.figures.set_index("figure")["outcome"]["claims"] == "within its interval"


def test_a_claim_on_one_side_only_is_no_change(results, reference):
    plant(results, "claims", CLAIMS.replace("B raises it", "C raises it"))
    c = compare(results, reference)
    assert not c.changed and "0 of 3 verdicts changed, 2 on one side only" in c.summary


def test_figures_on_one_side_only_are_named(results, reference):
    for suffix in ("json", "csv"): (results / f"claims.{suffix}").unlink()
    plant(results, "figure_2", CURVES)
    c = compare(results, reference)
    outcomes = c.figures.set_index("figure")["outcome"].to_dict()
    assert outcomes == {"figure_1": "identical", "figure_2": "without reference", "claims": "not made"}
    assert c.claims is None and not c.changed


def test_columns_more_or_less_do_no_harm_but_rows_do(results, reference):
    plant(results, "figure_1", CURVES.assign(new=1.0).drop(columns="images"))
    assert compare(results, reference).figures["outcome"][0] == "identical"
    plant(results, "figure_1", CURVES[CURVES["t"] > 100])
    assert compare(results, reference).figures["outcome"][0] == "different"


def test_a_reference_is_thinned_and_replaces_the_one_before(results, tmp_path, reference):
    assert len(pd.read_csv(reference / "figure_1.csv")) == 20
    assert {0, 398} < {*pd.read_csv(reference / "figure_1.csv")["t"]} and len(thinned(CURVES[:30])) == 30
    for suffix in ("json", "csv"): (results / f"claims.{suffix}").unlink()
    write_reference(results, reference)
    assert sorted(p.name for p in reference.iterdir()) == ["figure_1.csv", "reference.json"]


def test_what_is_known_of_a_number():
    table = pd.DataFrame({
        "run": ["a"],
        "energy": [20.0],
        "accuracy (judge)": [1.0],
        "probability (judge)": [0.5],
        "probability std (judge)": [0.4],
        "effect": [0.3],
        "low": [0.1],
        "high": [0.35],
    })
    def interval(column): return [float(side[0]) for side in bounds(table, column, 64)]
    assert interval("effect") == [0.1, 0.35] and interval("energy") == [19, 21]
    assert interval("probability (judge)") == pytest.approx([0.5 - 0.098, 0.5 + 0.098])
    assert interval("accuracy (judge)")[0] < 0.96 < 1 < interval("accuracy (judge)")[1]      # all of 64 is no certainty


def test_a_number_on_one_side_only_lies_outside(tmp_path):
    known = pd.DataFrame(dict(curve=["a", "b"], mean=[0.5, np.nan], std=0.1, images=64))
    assert against(known, known, 64, tmp_path / "x.csv")["outcome"] == "identical"
    assert against(known, known.assign(mean=[np.nan, np.nan]), 64, tmp_path / "x.csv")["outcome"] == "different"


def test_a_figure_without_runs_says_itself_how_many_images_it_is_of(results, reference):
    "Figure 8 looks at held-out images; their number is the preset's, and stands in what the notebook has chosen."
    seen = pd.DataFrame(dict(classifier="robust", input="x_t", t=[0, 20], right_mean=0.5, right_std=0.5))
    chosen = dict(chosen=dict(images=100), runs={})
    plant(results, "figure_8", seen, **chosen)
    write_reference(results, reference)
    for mean, outcome in ((0.5, "identical"), (0.55, "within its interval"), (0.9, "different")):
        plant(results, "figure_8", seen.assign(right_mean=mean), **chosen)
        assert compare(results, reference).figures.set_index("figure")["outcome"]["figure_8"] == outcome


def test_a_number_whose_interval_is_not_known_is_outside_where_it_differs(tmp_path):
    known = pd.DataFrame(dict(curve=["a", "b"], mean=[0.5, 0.4], std=0.1))
    assert against(known, known, np.nan, tmp_path / "x.csv")["outcome"] == "identical"
    assert against(known, known.assign(mean=[0.5, 0.41]), np.nan, tmp_path / "x.csv")["outside"] == 1


def test_a_verdict_that_differs_at_equal_numbers_is_not_identical_and_named(results, reference):
    rows = CLAIMS.drop(columns="beside").assign(protocol="ours", reader=["judge", "guide"])
    plant(results, "study", rows)
    write_reference(results, reference)
    assert set(compare(results, reference).figures["outcome"]) == {"identical"}
    plant(results, "study", rows.assign(verdict=["holds", "holds"]))
    row = compare(results, reference).figures.set_index("figure").loc["study"]
    assert row["outcome"] == "within its interval" and row["outside"] == 0
    assert row["note"] == "1 other verdict (holds instead of undecided: B raises it, ours, guide)"


def torn(folder): (folder / "claims.json").write_text('{"figure": "cla', encoding="utf-8")
def list_for_sidecar(folder): (folder / "claims.json").write_text("[]", encoding="utf-8")
def no_utf8(folder): (folder / "claims.csv").write_bytes(b"claim,effect\n\xff\xfe,1")
def empty(folder): (folder / "claims.csv").write_bytes(b"")
def only_a_header(folder): (folder / "claims.csv").write_text("claim,effect", encoding="utf-8")
def no_csv(folder): (folder / "claims.csv").unlink()
def no_sidecar(folder): (folder / "claims.json").unlink()
def no_verdicts(folder): plant(folder, "claims", CLAIMS.drop(columns="verdict"))
def other_columns(folder): plant(folder, "figure_1", pd.DataFrame(dict(a=[1], b=[2])))
def another_figures(folder): (folder / "claims.json").write_bytes((folder / "figure_1.json").read_bytes())
def older(folder): plant(folder, "claims", CLAIMS, run={k: v for k, v in RUN.items() if k != "digests"})
OTHERS = RUN | dict(digests=DIGESTS | dict(classifier="e" * 64))
def other_models(folder):
    for figure, table in (("figure_1", CURVES), ("claims", CLAIMS)): plant(folder, figure, table, run=OTHERS)


def mixed_models(folder): plant(folder, "claims", CLAIMS, run=OTHERS)
def mixed(folder): plant(folder, "claims", CLAIMS, setting=dict(target=2))
def other_setting(folder):
    for figure, table in (("figure_1", CURVES), ("claims", CLAIMS)): plant(folder, figure, table, setting=dict(seed=1))


@pytest.mark.parametrize("damage, said", [
    (torn, "not readable as JSON"), (list_for_sidecar, "the sidecar"), (no_utf8, "torn"), (empty, "empty"),
    (only_a_header, "empty"),
    (no_csv, "is missing"), (no_sidecar, "is missing"), (no_verdicts, "has no column verdict"),
    (other_columns, "another version"), (another_figures, "is of 'figure_1'"), (older, "does not name"),
    (other_models, "other models (laptop/nonrobust: eeeeeeeeeeee, in the reference cccccccccccc)"),
    (mixed_models, "mixes models (claims was made by laptop/nonrobust: eeeeeeeeeeee, not cccccccccccc); make claims"),
    (mixed, "mixes settings"), (other_setting, "under laptop, seed 1, its reference under laptop"),
])
def test_what_cannot_be_compared_is_one_sentence(results, reference, damage, said):
    damage(results)
    before = contents(results) | contents(reference)
    with pytest.raises(UserError) as error: compare(results, reference)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert contents(results) | contents(reference) == before


@pytest.mark.parametrize("damage", [torn, empty, no_csv, mixed, mixed_models])
def test_a_reference_is_not_written_from_half_a_folder(results, reference, damage):
    before = contents(reference)
    damage(results)
    with pytest.raises(UserError): write_reference(results, reference)
    assert contents(reference) == before


def test_folders_that_are_none(results, reference, tmp_path):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="there is no folder"): compare(tmp_path / "nowhere", reference)
    with pytest.raises(UserError, match="no figure of gradcheck"): compare(tmp_path / "foreign", reference)
    with pytest.raises(UserError, match="only of reference"): compare(results, tmp_path / "elsewhere")
    (reference / "reference.json").write_text('{"figures": 3}', encoding="utf-8")
    with pytest.raises(UserError, match="damaged"): compare(results, reference)


def test_a_setting_is_read_off_the_parameters_where_a_sidecar_does_not_say_it(results):
    sidecar = read_sidecar(results / "figure_1.json")
    assert setting_of(sidecar) == (("preset", "laptop"),)
    other = sidecar | dict(parameters=sidecar["parameters"] | dict(seed=3))
    assert setting_of(other) == (("preset", "laptop"), ("seed", "3"))
    assert setting_of(sidecar | dict(setting=dict(steps=4))) == (("preset", "laptop"), ("steps", "4"))
