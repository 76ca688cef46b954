"""Other people's models: pipelines made by diffusers itself, checkpoints as the authors write them, functions. Oracle:
diffusers' own DDPMPipeline."""

import json
import shutil

import pytest
import torch
from conftest import generator
from safetensors.torch import save_file

from gradcheck.models.checkpoints import load_denoiser, save_weights
from gradcheck.models.classifiers import MobileNetV3Small, class_probabilities
from gradcheck.core import UserError
from gradcheck.models.ddpm import DDPM
from gradcheck.guidance.sampling import Ancestral
from gradcheck.guidance.sampling import UNGUIDED, guided_steps
from gradcheck.models.foreign import load_foreign_classifier
from gradcheck.models.exports import save_pipeline
from gradcheck.models.interop import load_pipeline, pipeline_card
from gradcheck.models.catalogue import classifier_card, open_classifier
from gradcheck.runs.runs import run
from gradcheck.runs.specs import RunSpec
from gradcheck.core import seeded

diffusers = pytest.importorskip("diffusers")
NET = dict(
    sample_size=16,
    in_channels=3,
    out_channels=3,
    layers_per_block=1,
    block_out_channels=(8, 16),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    norm_num_groups=4,
    attention_head_dim=4,
)


def make_pipeline(folder, schedule="linear", prediction="epsilon", T=50, **scheduler):
    with seeded(1): unet = diffusers.UNet2DModel(**NET)
    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=T, beta_schedule=schedule, prediction_type=prediction, **scheduler
    )
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(folder, safe_serialization=True)
    return folder


def noises(shape, T): return torch.randn((T + 1, *shape), generator=generator())


def theirs(pipeline, draws, monkeypatch):
    "DDPMPipeline itself, its noise taken from `draws`; images in [-1, 1]."
    stream = iter(draws)
    for module in ("diffusers.pipelines.ddpm.pipeline_ddpm", "diffusers.schedulers.scheduling_ddpm"):
        monkeypatch.setattr(f"{module}.randn_tensor", lambda *args, **kwargs: next(stream))
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        batch_size=len(draws[0]), num_inference_steps=pipeline.scheduler.config.num_train_timesteps, output_type="np"
    ).images
    return torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1


def ours(denoiser, ddpm, draws, monkeypatch):
    "Our sampler under the same noise, clamped as the pipeline's images are."
    stream = iter(draws[1:])
    monkeypatch.setattr(
        "gradcheck.guidance.sampling.randn", lambda *args, **kwargs: next(stream, torch.zeros_like(draws[0]))
    )
    for step in guided_steps(ddpm, denoiser, UNGUIDED, draws[0], None, sampler=Ancestral()): pass
    return step.x_prev.clamp(-1, 1)


@pytest.mark.parametrize(
    "schedule, prediction, more",
    [
        ("linear", "epsilon", {}),
        ("scaled_linear", "epsilon", {}),
        ("squaredcos_cap_v2", "epsilon", {}),
        ("linear", "sample", {}),
        ("linear", "v_prediction", {}),
        ("squaredcos_cap_v2", "v_prediction", dict(clip_sample=False)),
        ("linear", "epsilon", dict(variance_type="fixed_large")),
    ],
)
def test_whole_trajectories_are_those_of_ddpmpipeline(schedule, prediction, more, tmp_path, monkeypatch):
    folder = make_pipeline(tmp_path / "pipeline", schedule, prediction, **more)
    draws, card = noises((4, 3, 16, 16), 50), pipeline_card(folder)
    b = theirs(diffusers.DDPMPipeline.from_pretrained(folder), draws, monkeypatch)
    a = ours(load_pipeline(folder), DDPM(**card["diffusion"]), draws, monkeypatch)
    assert card["shape"] == (3, 16, 16) and b.std() > 0.1
    assert (a - b).abs().max() < 2e-4


def flat(folder, **config):
    "The same pipeline as google/ddpm-* lie on a hub: all files side by side, and what their configuration says."
    for path in [*(folder / "unet").iterdir(), *(folder / "scheduler").iterdir()]: path.rename(folder / path.name)
    for part in ("unet", "scheduler"): (folder / part).rmdir()
    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(said | config), encoding="utf-8")
    said = json.loads((folder / "scheduler_config.json").read_text(encoding="utf-8"))
    for field in ("prediction_type", "clip_sample_range", "thresholding", "timestep_spacing"): del said[field]
    (folder / "scheduler_config.json").write_text(json.dumps(said), encoding="utf-8")


def test_a_flat_pipeline_of_googles_kind_is_drawn_as_diffusers_draws_it(tmp_path, monkeypatch):
    folder, draws = make_pipeline(tmp_path / "pipeline", variance_type="fixed_large"), noises((4, 3, 16, 16), 50)
    flat(
        folder,
        attention_head_dim=None,
        freq_shift=1,
        flip_sin_to_cos=False,
        downsample_padding=0,
        norm_eps=1e-6,
    )
    b = theirs(diffusers.DDPMPipeline.from_pretrained(folder), draws, monkeypatch)
    a = ours(load_pipeline(folder), DDPM(**pipeline_card(folder)["diffusion"]), draws, monkeypatch)
    assert (a - b).abs().max() < 2e-4 and b.std() > 0.1


def test_ours_is_loaded_by_diffusers(tmp_path, monkeypatch):
    "The laptop's denoiser, patches and all, for 20 steps of its 400: the pipeline sees the unshuffled pixels."
    unet, ddpm = load_denoiser("laptop/ddpm"), DDPM(T=20)
    save_pipeline(unet, ddpm, tmp_path)
    draws = noises((2, 3, 64, 64), 20)
    shuffled = torch.stack([torch.pixel_unshuffle(d, 4) for d in draws])
    b = torch.pixel_shuffle(theirs(diffusers.DDPMPipeline.from_pretrained(tmp_path), shuffled, monkeypatch), 4)
    a = ours(unet, ddpm, draws, monkeypatch)
    assert (a - b).abs().max() < 2e-4 and b.std() > 0.1
    c = ours(load_pipeline(tmp_path), ddpm, draws, monkeypatch)                        # and back
    assert (a - c).abs().max() < 2e-4


def test_a_pipeline_is_a_denoiser_for_runs(tmp_path):
    folder = make_pipeline(tmp_path / "pipeline")
    (tmp_path / "mine.py").write_text(CLASSIFIER, encoding="utf-8")
    spec = RunSpec(
        denoiser=str(folder),
        classifier=f"{tmp_path}/mine.py:make",
        judge=None,
        steps=6,
        count=2,
        start="standard",
        where="x0_hat",
    )
    result = run(spec, 2)
    assert (
        spec.shape == (3, 16, 16)
        and spec.diffusion.T == 50
        and spec.classes == ["0", "1", "2"]
        and spec.judge == spec.classifier
    )
    assert result.samples.shape == (2, 3, 16, 16) and result.guide.shape == (2, 3) and result.trace["norm"].min() > 0
    key = spec.key
    said("scheduler", beta_end=0.03)(folder)
    assert (
        RunSpec(
            denoiser=str(folder),
            classifier=f"{tmp_path}/mine.py:make",
            judge=None,
            steps=6,
            count=2,
            start="standard",
            where="x0_hat",
        ).key
        != key
    )


CLASSIFIER = """
import torch
from torch import nn
def make(classes=3):
    features = nn.Conv2d(3, 8, 3, 2, 1), nn.SiLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()
    return nn.Sequential(*features, nn.Linear(128, classes))
def make_two(): return make(2)
def binary(): return make(1)
def fixed_size(): return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
def lazy(): return nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
def text(): return "no module"
def broken(): raise RuntimeError("on purpose")
"""


PREFIXES = ["classifier.", "", "module.", "_orig_mod.", "model.", "module.classifier.", "_orig_mod.module.model."]


@pytest.mark.parametrize("counters", [True, False])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_classifiers_as_training_scripts_leave_them(prefix, counters, tmp_path):
    with seeded(3): net = MobileNetV3Small(classes=2).eval()
    state = {prefix + k: v.contiguous() for k, v in net.state_dict().items() if counters or "num_batches" not in k}
    save_file(state, tmp_path / "model.safetensors")
    card, x = classifier_card(str(tmp_path / "model.safetensors"), (3, 64, 64)), torch.rand(2, 3, 64, 64)
    assert card["config"] == dict(classes=2, size=None)
    with torch.no_grad(): assert torch.equal(load_foreign_classifier(tmp_path / "model.safetensors")(x), net(x))


@pytest.mark.parametrize("change, message", [
    ({"features.0.0.weight": torch.zeros(16, 1, 3, 3)}, "takes images of 1 channels"),
    ({"features.0.0.weight": torch.zeros(())}, "see features.0.0.weight, of 1"),
    ({"classifier.3.weight": torch.zeros(())}, "not a MobileNetV3-small"),
    ({"classifier.3.weight": torch.zeros(0, 1024)}, "not a MobileNetV3-small"),
    ({"classifier.3.bias": torch.full((2,), float("nan"))}, "not finite .classifier.3.bias first"),
])
def test_classifiers_that_are_another_network_are_refused(change, message, tmp_path):
    with seeded(3): state = MobileNetV3Small(classes=2).state_dict()
    save_file({k: v.contiguous() for k, v in (state | change).items()}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=message): load_foreign_classifier(tmp_path / "model.safetensors")


@pytest.mark.parametrize("prefix", ["classifier.", ""])
def test_the_authors_checkpoints(prefix, tmp_path):
    with seeded(3): net = MobileNetV3Small(classes=1).eval()
    path = tmp_path / "model.safetensors"
    save_file({prefix + k: v.contiguous() for k, v in net.state_dict().items()}, path)
    card, x = classifier_card(str(path), (3, 64, 64)), torch.rand(16, 3, 64, 64, generator=generator()) * 2 - 1
    assert card["config"] == dict(classes=1, size=None)
    with torch.no_grad(): assert torch.allclose(open_classifier(str(path))(x), net(x), atol=1e-4)
    spec = RunSpec(classifier=str(path), judge=None, objective="binary", target=1, steps=2, count=2)
    result = run(spec, 2)
    assert spec.classes == ["no", "yes"] and torch.allclose(result.guide.sum(1), torch.ones(2))
    assert torch.allclose(
        result.guide, class_probabilities(open_classifier(str(path))(result.samples.float() / 127.5 - 1)), atol=1e-5
    )


def said(part, **fields):
    "Fields in the configuration of a part of a pipeline, changed."
    def damage(folder):
        path = folder / part / ("config.json" if part == "unet" else "scheduler_config.json")
        config = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(config | fields), encoding="utf-8")
    return damage


WEIGHTS = "unet/diffusion_pytorch_model"
DAMAGE = {
    None: lambda folder: None,
    "no unet": lambda folder: shutil.rmtree(folder / "unet"),
    "no scheduler": lambda folder: shutil.rmtree(folder / "scheduler"),
    "pickle": lambda folder: (folder / f"{WEIGHTS}.safetensors").rename(folder / f"{WEIGHTS}.bin"),
    "no weights": lambda folder: (folder / f"{WEIGHTS}.safetensors").unlink(),
    "truncated": lambda folder: (folder / f"{WEIGHTS}.safetensors").write_bytes(b"\0" * 100),
    "other widths": said("unet", block_out_channels=[8, 24]),
    "conditional": said("unet", num_class_embeds=10),
    "text": said("unet", _class_name="UNet2DConditionModel"),
    "scheduler": said("scheduler", _class_name="PNDMScheduler"),
    "thresholding": said("scheduler", thresholding=True),
    "sigmoid": said("scheduler", beta_schedule="sigmoid"),
}


@pytest.mark.parametrize(
    "what, message",
    [
        ("no unet", "neither unet/config.json nor config.json"),
        ("pickle", "pickled weights only .* can run code"),
        ("no weights", "no diffusion_pytorch_model.safetensors"),
        ("truncated", "cannot be read"),
        ("other widths", "cannot be read|do not fit"),
        ("conditional", "unconditional"),
        ("text", '_class_name is "UNet2DConditionModel".* it must be "UNet2DModel"'),
        ("scheduler", '"PNDMScheduler".* it must be "DDPMScheduler" or "DDIMScheduler"'),
        ("no scheduler", "scheduler_config.json"),
        ("thresholding", "thresholding is true"),
        ("sigmoid", 'beta_schedule is "sigmoid"'),
    ],
)
def test_pipelines_that_cannot_be_used_are_refused_with_the_reason(what, message, tmp_path):
    folder = make_pipeline(tmp_path / "pipeline")
    DAMAGE[what](folder)
    with pytest.raises(UserError, match=message): load_pipeline(folder)


@pytest.mark.parametrize(
    "what, message",
    [
        ("no unet", "has neither unet/config.json nor config.json"),
        ("pickle", "which can run code"),
        ("scheduler", '_class_name is "PNDMScheduler"'),
        (None, "target class 3 was given; the classes are 0 (0), 1 (1), 2 (2)"),
    ],
)
def test_and_the_command_line_says_it_in_one_sentence(what, message, tmp_path, cli, own_cache):
    folder = make_pipeline(tmp_path / "pipeline")
    DAMAGE[what](folder)
    (tmp_path / "mine.py").write_text(CLASSIFIER, encoding="utf-8")
    code, _, err = cli(
        "sample",
        "--denoiser",
        folder,
        "--classifier",
        f"{tmp_path}/mine.py:make",
        "--target",
        "0" if what else "3",
        "--steps",
        "2",
        "--count",
        "1",
        "--out",
        tmp_path / "out",
    )
    assert (
        code == 2
        and message in err
        and err.startswith("gradcheck: ")
        and err.count("\n") == 1
        and not list(own_cache.rglob("*.safetensors"))
    )


@pytest.mark.parametrize(
    "name, message",
    [
        ("mine.py:nothing", "cannot be imported"),
        ("nowhere:make", "cannot be imported"),
        ("mine.py:text", "is a str"),
        ("mine.py:broken", "on purpose"),
        ("mine.py:lazy", "lazy layers"),
        ("mine.py:fixed_size", r"images of shape \(3, 64, 64\)"),
    ],
)
def test_functions_that_are_no_classifier(name, message, tmp_path):
    (tmp_path / "mine.py").write_text(CLASSIFIER, encoding="utf-8")
    name = f"{tmp_path}/{name}" if name.startswith("mine") else name
    with pytest.raises(UserError, match=message): RunSpec(classifier=name, judge=None)


def test_models_that_do_not_fit_together(tmp_path):
    folder = str(make_pipeline(tmp_path / "pipeline"))
    (tmp_path / "mine.py").write_text(CLASSIFIER, encoding="utf-8")
    mine = f"{tmp_path}/mine.py:make"
    for change, message in (
        (dict(classifier="laptop/robust"), r"takes images of shape \(3, 64, 64\)"),
        (dict(target=3), "target class 3"),
        (dict(classifier=f"{tmp_path}/mine.py:binary"), "binary needs one logit"),
        (dict(judge=f"{tmp_path}/mine.py:binary"), "give one for the same classes"),
        (dict(start="matched"), "no matched start"),
        (dict(steps=51), "T = 50"),
    ):
        with pytest.raises(UserError, match=message):
            RunSpec(**dict(denoiser=folder, classifier=mine, judge=None, start="standard", steps=5) | change)
    (tmp_path / "odd.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="not a readable"): RunSpec(classifier=str(tmp_path / "odd.safetensors"))
    save_file({"features.0.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not a MobileNetV3-small"):
        RunSpec(classifier=str(tmp_path / "other.safetensors"))


def test_weights_in_shards(tmp_path):
    unet = load_denoiser("laptop/ddpm")
    card = save_weights(
        unet, tmp_path / "ddpm.safetensors", {"diffusion": {"T": 400}}, torch.float32, largest=4_000_000
    )
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (
        [f.name for f in files] == card["files"] and len(files) > 3 and max(f.stat().st_size for f in files) < 4_100_000
    )
    again = load_denoiser(str(tmp_path / "ddpm.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(unet.state_dict().values(), again.state_dict().values()))
    files[1].unlink()
    with pytest.raises(UserError, match="lack 'ddpm-00002-of-"): load_denoiser(str(tmp_path / "ddpm.safetensors"))
