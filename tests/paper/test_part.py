"""A part of the study computed here: its scales, and what it says beside the study's own numbers."""
from dataclasses import replace

import pytest
from test_study import planted

from gradcheck.base import reference_folder
from gradcheck.core import UserError
from gradcheck.paper import part
from gradcheck.paper.part import PART, beside, known_scales, part_of_study
from gradcheck.paper.study import FULL, cells_of
from gradcheck.paper.study_results import packed, unpacked
from gradcheck.paper.study_runs import scale_rows
from gradcheck.runs.specs import PROBE

RAISED_BY_X0 = "x̂₀ raises it"


def test_the_repository_knows_a_scale_of_every_cell():
    cells = cells_of(FULL)
    scales = known_scales(cells, FULL)
    assert all(len(found) == len(FULL.energies) and min(found) > PROBE for found in scales.values())
    table = unpacked(reference_folder("study") / "scales.csv.gz", ())
    again = scale_rows({cell: [*found, 1.0] for cell, found in scales.items()}, FULL)
    both = table[table["energy"].isin(FULL.energies)].merge(again, "inner", [c for c in again if c != "scale"])
    assert len(both) == len(cells) * len(FULL.energies) and (both["scale_x"] == both["scale_y"]).all()


def test_a_cell_that_the_study_lacks_and_damage_are_a_sentence(tmp_path, monkeypatch):
    cell = cells_of(PART)[0]
    with pytest.raises(UserError, match="no scale of 'ours, nonrobust 77"):
        known_scales([replace(cell, replicate=77)], PART)
    with pytest.raises(UserError, match="no scale"): known_scales([cell], replace(PART, energies=(7.0,)))
    monkeypatch.setattr(part, "reference_folder", lambda name: tmp_path)
    with pytest.raises(UserError, match="scales.csv.gz"): known_scales([cell], PART)
    table = scale_rows({cell: [1.0, float("nan")]}, PART)
    (tmp_path / "scales.csv.gz").write_bytes(packed(table))
    with pytest.raises(UserError, match="no finite number"): known_scales([cell], PART)


def test_the_part_stands_beside_the_same_images_and_the_whole():
    "A lift that only the first two images have is the part's; one machine's error in them is seen between the two."
    study = planted(lambda r, k: 0.0)["outcomes"]
    lifted = (study["variant"] == "x0_hat") & (study["image"] < 2)
    study.loc[lifted, ["judge", "oracle", "whole"]] += 0.3
    of_part = study[(study["image"] < 2) & (study["replicate"] < 3) & (study["energy"] == 14)]
    table = beside(of_part, study)
    row = table.loc[RAISED_BY_X0, "judge"]
    assert row["here"].equals(row["same images"]) and row["here"]["effect"] == pytest.approx(0.3, abs=0.05)
    assert row["the study"]["effect"] == pytest.approx(0.1, abs=0.03)
    other = beside(of_part.assign(judge=0.5), study).loc[RAISED_BY_X0, "judge"]
    assert other["here"]["effect"] == 0 and other["same images"]["effect"] == row["here"]["effect"]


def test_an_image_is_compared_with_the_studys_own(monkeypatch):
    "What runs say is planted: the study's own numbers, but for one image."
    def planted_rows(along):
        study = part.read_study()["outcomes"]
        mine = study[(study["protocol"] == "ours") & (study["image"] < 2) & (study["energy"] == 14)].copy()
        mine.iloc[0, mine.columns.get_loc("judge")] += 0.25
        return mine[mine["replicate"] < 3]

    monkeypatch.setattr(part, "runs_along", lambda cells, scales, study: None)
    monkeypatch.setattr(part, "outcomes", planted_rows)
    here, table, apart = part_of_study("laptop")
    assert len(apart) == len(here) == 3 * 4 * 6 * 2 and (apart > 0.1).sum() == 1
    assert apart.max() == pytest.approx(0.25)
