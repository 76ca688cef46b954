"""A cache that was made before the notebooks moved into their folders still serves every run: the keys are the same."""
import json
from dataclasses import replace
from pathlib import Path

import pytest

from gradcheck.paper.figures import figure_specs
from gradcheck.paper.settings import preset_for

KEYS = json.loads((Path(__file__).parent / "keys_before_the_move.json").read_text(encoding="utf-8"))
SIZES = {"smoke": dict(steps=8, sweep_steps=4)}                           # that a preset had then, where it has others
BUNDLED = dict(robust="laptop/robust", nonrobust="coupled/nonrobust")
MODELS = {"paper": dict(denoiser="laptop/ddpm", classifiers=BUNDLED)}     # the same, of a mode


@pytest.mark.parametrize("setting", KEYS)
def test_keys_are_as_before_the_move(setting):
    name, mode = setting.split(" ")
    preset = replace(preset_for(name, mode=mode), **SIZES.get(name, {}), **MODELS.get(mode, {}))
    objective = None if mode == "paper" else "log_probability"              # that Figures 1 to 3 and Table 1 had
    for figure in {label.split(" ")[0] for label in KEYS[setting]}:
        scales = lambda spec, energies: [spec.scale for _ in energies]     # noqa: E731
        specs = figure_specs(figure, preset, scales, objective=objective)
        for label, spec in specs.items():
            assert spec.key == KEYS[setting][f"{figure} {label}"], label
