"""`gradcheck reproduce --authors`: folders laid out as `pretrained_models/sportballs` and `celeba` of the authors'
repository, their configurations as they are there, random weights, smaller where they are run."""

import json
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from gradcheck.app import sizes
from gradcheck.core import UserError, seeded
from gradcheck.guidance.stabilizers import Adam
from gradcheck.models.authors import AUTHORS, authors_models, with_authors
from gradcheck.models.catalogue import classifier_card
from gradcheck.models.classifiers import MobileNetV3Small
from gradcheck.models.ddpm import DDPM
from gradcheck.models.folders import STEM
from gradcheck.models.interop import pipeline_card, read_scheduler, read_unet
from gradcheck.models.unet import UNet, UNetConfig
from gradcheck.paper.plan import needed_runs, new_chunks
from gradcheck.paper.reproduce import default_figures
from gradcheck.paper.settings import preset_for, spec_for

UNET = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.26.2",
    "act_fn": "silu",
    "add_attention": True,
    "attention_head_dim": 8,
    "attn_norm_num_groups": None,
    "block_out_channels": [64, 128, 192, 256],
    "center_input_sample": False,
    "class_embed_type": None,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "downsample_padding": 1,
    "downsample_type": "conv",
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "num_train_timesteps": None,
    "out_channels": 3,
    "resnet_time_scale_shift": "default",
    "sample_size": 64,
    "time_embedding_type": "positional",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "upsample_type": "conv",
}
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.26.2",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.995,
    "num_train_timesteps": 400,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "steps_offset": 0,
    "thresholding": False,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "variance_type": "fixed_small",
}
PIPELINE = {"sportballs": "GuidedDDPMPipeline", "celeba": "DDPMPipeline"}
CLASSES = {"sportballs": 4, "celeba": 1}
SMALL = dict(sample_size=16, block_out_channels=[8, 8, 16, 16], norm_num_groups=4, layers_per_block=1)


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


def laid_out(root, name):
    "The folder `pretrained_models/NAME` with small random networks; its path."
    folder = root / "pretrained_models" / name
    parts = dict(scheduler=["diffusers", "DDPMScheduler"], unet=["diffusers", "UNet2DModel"])
    write(folder / "model_index.json", {"_class_name": PIPELINE[name], "_diffusers_version": "0.26.2"} | parts)
    write(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write(folder / "unet" / "config.json", UNET | SMALL)
    shape = UNetConfig(size=16, widths=(8, 8, 16, 16), attention=(False, True, True, True), layers=1, groups=4)
    with seeded(1): state = UNet(shape).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "unet" / f"{STEM}.safetensors")
    for seed, role in enumerate(("classifier", "robust")):
        with seeded(seed): state = MobileNetV3Small(classes=CLASSES[name]).state_dict()
        save_file({f"classifier.{k}": v.contiguous() for k, v in state.items()},
                  folder / f"{AUTHORS[name][role]}.safetensors")
    return folder


def test_what_it_costs_is_counted(tmp_path):
    models = authors_models(laid_out(tmp_path, "sportballs"))
    p = preset_for("laptop", mode="paper", **models)
    chunks = {}
    for figure in default_figures(models):
        chunks |= new_chunks(needed_runs(figure, p, tmp_path / "cache"), chunks)
    counted = Counter()
    for spec, images in chunks.values(): counted[spec.where] += len(images) * spec.calls
    kinds = {"unguided": "unguided", "x_t": "plain", "x0_hat": "x0_hat"}
    assert {kinds[where]: steps for where, steps in counted.items()} == sizes.AUTHORS


@pytest.mark.parametrize("name", AUTHORS)
def test_the_networks_are_found_by_their_names(name, tmp_path):
    folder = laid_out(tmp_path, name)
    found = authors_models(folder)
    assert found["denoiser"] == str(folder) and pipeline_card(folder)["diffusion"]["T"] == 400
    stems = dict(sportballs="light-dew-109 apricot-galaxy-108", celeba="classic-aardvark-104 golden-leaf-103")
    assert [Path(found[role]).stem for role in ("classifier", "robust")] == stems[name].split()
    assert classifier_card(found["robust"], (3, 16, 16))["config"]["classes"] == CLASSES[name]


def test_their_configurations_are_read_as_they_are(tmp_path):
    "T = 400, linear, the small fixed variance, epsilon, clipped; their U-Net has the shapes that diffusers gives it."
    diffusers = pytest.importorskip("diffusers")
    write(tmp_path / "scheduler_config.json", SCHEDULER)
    write(tmp_path / "config.json", UNET)
    diffusion, prediction = read_scheduler(tmp_path)
    assert DDPM(**diffusion) == DDPM(400, "linear", 1e-4, 0.02, clip=True) and prediction == "epsilon"
    with torch.device("meta"):
        unet = diffusers.UNet2DModel(**{k: v for k, v in read_unet(tmp_path).items() if k[0] != "_"})
        ours = UNet(UNetConfig(64, widths=(64, 128, 192, 256), attention=(False, True, True, True), layers=2,
                               groups=32, head_dim=8))
    assert {k: v.shape for k, v in unet.state_dict().items()} == {k: v.shape for k, v in ours.state_dict().items()}


def test_the_papers_settings_are_theirs(tmp_path):
    models = authors_models(laid_out(tmp_path, "sportballs"))
    p = preset_for("smoke", mode="paper", **models)
    spec = spec_for(p, "nonrobust", "both")
    assert (spec.where, spec.objective, spec.start, spec.state) == ("x0_hat", "logit", "standard", "float16")
    assert spec.fresh_stabilizer() == Adam(0.9, 0.999, 1e-4, False) and spec.judge == spec.classifier
    assert (p.data, p.T) == ("sportballs:coupled", 400)
    models = authors_models(laid_out(tmp_path, "celeba"))
    binary = spec_for(preset_for("smoke", mode="paper", **models), "robust", "plain")
    assert (binary.objective, binary.classes) == ("binary", ["no", "yes"])


def test_one_command_makes_the_papers_figures(tmp_path, cli, monkeypatch):
    "Named from the folder above, where `sportballs` is also the name of a data set."
    pytest.importorskip("diffusers")
    root = Path(__file__).parents[2]
    monkeypatch.chdir(laid_out(tmp_path, "sportballs").parent)
    monkeypatch.setattr("gradcheck.paper.reproduce.project_root", lambda: root)
    figures = ["figure_1", "figure_5", "table_1"]                        # 2 and 3 are the first in other variants
    small = ("--preset", "smoke", "-p", "count=2")
    code, out, err = cli("reproduce", *figures, "--authors", "sportballs", *small, "--out", tmp_path / "out")
    assert code == 0, err
    folder, = (tmp_path / "out").glob("own-light-dew-109-*-paper*")
    assert [name for name in figures if (folder / f"{name}.png").is_file()] == figures
    assert default_figures(authors_models("sportballs")) == [
        "figure_1", "figure_2", "figure_3", "figure_5", "table_1", "claims"]
    runs = json.loads((folder / "figure_1.json").read_text(encoding="utf-8"))["runs"]
    assert {Path(r["classifier"]).stem for r in runs.values()} == {"light-dew-109", "apricot-galaxy-108"}
    assert {(r["objective"], r["T"], r["start"]) for r in runs.values()} == {("logit", 400, "standard")}
    assert pd.read_csv(folder / "table_1.csv")["FID (judge), target"].notna().all()


def lacks(name): return lambda folder: (folder / f"{name}.safetensors").unlink()


def pointer(folder):
    (folder / "light-dew-109.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def both(folder):
    for name in ("light-dew-109", "apricot-galaxy-108"): lacks(name)(folder)


@pytest.mark.parametrize("damage, message", [
    (lacks("apricot-galaxy-108"), "lacks apricot-galaxy-108.safetensors, the robust classifier"),
    (lacks("light-dew-109"), "lacks light-dew-109.safetensors, the non-robust classifier"),
    (both, "holds none of the authors' classifiers"),
    (pointer, "git lfs pull"),
])
def test_files_that_are_missing_are_named(damage, message, tmp_path):
    folder = laid_out(tmp_path, "sportballs")
    damage(folder)
    with pytest.raises(UserError, match=message): authors_models(folder)


@pytest.mark.parametrize("args, message", [
    (("--authors", "nowhere"), "there is no folder 'nowhere'"),
    (("--authors", "."), "is the folder above; give 'pretrained_models/celeba'"),
    (("--authors", "pretrained_models"), "is the folder above; give 'pretrained_models/celeba'"),
    (("--authors", "pretrained_models/celeba", "--robust", "laptop/robust"), "leave out --robust"),
    (("--authors", "pretrained_models/celeba", "--denoiser", "laptop/ddpm"), "leave out --denoiser"),
    (("--authors", "pretrained_models/celeba", "table_1"), "--data"),
    (("--authors", "pretrained_models/celeba", "figure_1", "-p", "target=2"), "target class 2"),
    (("--authors", "pretrained_models/celeba/unet"), "holds none of the authors' classifiers"),
])
def test_bad_input_is_one_sentence(args, message, tmp_path, cli, monkeypatch):
    laid_out(tmp_path, "celeba")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gradcheck.paper.reproduce.project_root", lambda: Path(__file__).parents[2])
    code, _, err = cli("reproduce", *args, "--preset", "smoke", "--out", tmp_path / "out")
    assert code == 2 and message in err and "Traceback" not in err and len(err.splitlines()) == 1


def test_a_judge_and_data_may_stand_beside_theirs(tmp_path):
    folder = laid_out(tmp_path, "sportballs")
    asked = with_authors(folder, dict(judge="j", data="d", robust=None))
    assert (asked["judge"], asked["data"], Path(asked["robust"]).stem) == ("j", "d", "apricot-galaxy-108")
