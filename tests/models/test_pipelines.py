"""Folders of diffusers as hubs and disks hold them: read as their writer meant, or refused with the field's name. Most
of it is known without diffusers; what needs it is skipped where it is not installed."""
import inspect
import json
import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from conftest import generator
from safetensors.torch import load_file, save_file

from gradcheck.core import UserError, seeded
from gradcheck.models import exports
from gradcheck.models.catalogue import has_start
from gradcheck.models.checkpoints import load_start, save_weights
from gradcheck.models.exports import export_denoiser
from gradcheck.models.folders import NEW, SCHEDULER, STEM, UNET, refuse_hub_id
from gradcheck.models.interop import expected_shapes, load_pipeline, pipeline_card, read_patch, read_unet
from gradcheck.models.unet import UNet, UNetConfig
from gradcheck.runs.specs import RunSpec

CONFIG = {
    "_class_name": "UNet2DModel",
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 1,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
GOOGLE = {                                                      # what google/ddpm-* say differently
    "_diffusers_version": "0.0.4",
    "attention_head_dim": None,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "downsample_padding": 0,
    "norm_eps": 1e-6,
}
SCHEDULE = {"_class_name": "DDPMScheduler", "num_train_timesteps": 50}
INDEX = {
    "_class_name": "DDPMPipeline",
    "scheduler": ["diffusers", "DDPMScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
}
OURS = UNetConfig(size=16, widths=(8, 16), attention=(False, True), layers=1, groups=4, head_dim=4)
PARTS = ("model_index.json", "config.json", "scheduler_config.json", f"{STEM}.safetensors.index.json", "gradcheck.json")


@cache
def fresh(config):
    with seeded(1): return UNet(config).state_dict()


def weights(config=OURS): return {k: v.clone() for k, v in fresh(config).items()}


def write(path, values): path.write_text(json.dumps(values), encoding="utf-8")


def pipeline(folder, nested=(), config=None, schedule=None, index=None, tensors=None, name=f"{STEM}.safetensors"):
    "A pipeline's folder, its parts beside each other but for those that are `nested`; returns the folder."
    unet, scheduler = (folder / part if part in nested else folder for part in ("unet", "scheduler"))
    for part in (unet, scheduler): part.mkdir(parents=True, exist_ok=True)
    write(folder / "model_index.json", INDEX | (index or {}))
    write(unet / "config.json", CONFIG | (config or {}))
    write(scheduler / "scheduler_config.json", SCHEDULE | (schedule or {}))
    save_file(tensors or weights(), unet / name)
    return folder


def shards(folder, variant=None, old=False):
    "The same weights in two files with their index."
    tensors = load_file(folder / f"{STEM}.safetensors")
    (folder / f"{STEM}.safetensors").unlink()
    middle, end = (f".{variant}" if variant and not old else "", f".{variant}" if variant and old else "")
    places = {}
    for k in (1, 2):
        file = f"{STEM}{middle}-0000{k}-of-00002{end}.safetensors"
        part = {name: value for i, (name, value) in enumerate(tensors.items()) if i % 2 == k - 1}
        save_file(part, folder / file)
        places |= dict.fromkeys(part, file)
    write(folder / f"{STEM}.safetensors.index{middle or end}.json", {"metadata": {}, "weight_map": places})
    return folder


@pytest.mark.parametrize("nested", [(), ("unet",), ("scheduler",), ("unet", "scheduler")])
def test_the_parts_lie_in_folders_or_side_by_side(nested, tmp_path):
    card = pipeline_card(pipeline(tmp_path, nested))
    assert (card["shape"], card["diffusion"]["T"], card["prediction"]) == ((3, 16, 16), 50, "epsilon")
    assert card["sha256"] == pipeline_card(pipeline(tmp_path / "flat"))["sha256"]


def test_what_a_file_does_not_say_is_what_diffusers_has_always_had():
    diffusers = pytest.importorskip("diffusers")
    for cls, table in ((diffusers.UNet2DModel, UNET), (diffusers.DDPMScheduler, SCHEDULER)):
        theirs = inspect.signature(cls.__init__).parameters
        for field, (kind, usual) in table.items():
            if field == "_class_name": continue
            known = theirs[field].default
            assert usual == (list(known) if isinstance(known, tuple) else known), field
            assert kind.holds(usual) or field == "sample_size"
        assert theirs.keys() - {"self", *table} <= {
            "dynamic_thresholding_ratio", "sample_max_value", "timestep_spacing", "steps_offset"}


# --- weights ---------------------------------------------------------------------------------------

VARIANTS = {
    "half": lambda folder: (folder / f"{STEM}.safetensors").rename(folder / f"{STEM}.fp16.safetensors"),
    "shards": shards,
    "half shards": lambda folder: shards(folder, "fp16"),
    "half shards of old": lambda folder: shards(folder, "fp16", old=True),
    "pickle beside": lambda folder: (folder / f"{STEM}.bin").write_bytes(b"a pickle"),
    "half beside": lambda folder: save_file(weights(), folder / f"{STEM}.fp16.safetensors"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_as_they_are_found(variant, tmp_path):
    pytest.importorskip("diffusers")
    VARIANTS[variant](pipeline(tmp_path / "a"))
    assert pipeline_card(tmp_path / "a")["shape"] == (3, 16, 16)
    found, plain = (load_pipeline(folder).state_dict() for folder in (tmp_path / "a", pipeline(tmp_path / "b")))
    assert found.keys() == plain.keys() and all(torch.equal(found[k], plain[k]) for k in plain)


def test_weights_in_half_precision_and_under_old_names(tmp_path):
    pytest.importorskip("diffusers")
    older = {today: old for old, today in NEW.items()}

    def old(name):
        head, _, end = name.partition(".to_")
        kind, _, which = f"to_{end}".rpartition(".")
        return f"{head}.{older[kind]}.{which}" if end else name
    tensors = {old(k): v.half() for k, v in weights().items()}
    assert any(".proj_attn." in k for k in tensors) and not any(".to_" in k for k in tensors)
    found = load_pipeline(pipeline(tmp_path, tensors=tensors)).unet.state_dict()
    assert all(torch.equal(found[k], v.half().float()) for k, v in weights().items())


def two_variants(folder):
    for variant in ("ema", "fp16"): save_file(weights(), folder / f"{STEM}.{variant}.safetensors")
    (folder / f"{STEM}.safetensors").unlink()


def one_shard_less(folder): next(shards(folder).glob("*-00002-of-*")).unlink()
def no_index(folder): (shards(folder) / f"{STEM}.safetensors.index.json").unlink()


def remapped(change):
    def damage(folder):
        path = shards(folder) / f"{STEM}.safetensors.index.json"
        write(path, change(json.loads(path.read_text(encoding="utf-8"))))
    return damage


def swapped(index):
    names = sorted(set(index["weight_map"].values()))
    return {"weight_map": {k: names[v == names[0]] for k, v in index["weight_map"].items()}}


def rewritten(change): return lambda folder: save_file(change(weights()), folder / f"{STEM}.safetensors")
def raw(data): return lambda folder: (folder / f"{STEM}.safetensors").write_bytes(data)
def pickled(folder): (folder / f"{STEM}.safetensors").rename(folder / f"{STEM}.bin")


@pytest.mark.parametrize("damage, message", [
    (two_variants, r"several variants \(ema, fp16\)"),
    (one_shard_less, "which is not there"),
    (no_index, "but no .*index.json"),
    (remapped(lambda index: {}), "weight_map"),
    (remapped(lambda index: {"weight_map": []}), "weight_map"),
    (remapped(lambda index: {"weight_map": {"a": 3}}), "weight_map"),
    (remapped(lambda index: {"weight_map": {"a": "../../etc/passwd"}}), "which is not there"),
    (remapped(lambda index: {"weight_map": {"a": "/dev/zero"}}), "which is not there"),
    (remapped(swapped), "does not fit the shards"),
    (pickled, "can run code"),
    (raw(b""), "cannot be read as safetensors"),
    (raw(b"\0" * 100), "cannot be read as safetensors"),
    (raw(b"\xff" * 100), "cannot be read as safetensors"),
    (raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"), "git lfs pull"),
    (rewritten(lambda w: {k: v.to(torch.int8) for k, v in w.items()}), "stored as I8"),
    (rewritten(lambda w: {k: v for k, v in w.items() if k != "conv_in.weight"}), "conv_in.weight has shape None"),
    (rewritten(lambda w: weights(UNetConfig(size=16, widths=(8, 24), attention=(False, True), groups=4))), "conv1"),
    (rewritten(lambda w: weights(UNetConfig(size=16, widths=(8, 16), attention=(False, True), groups=4))), "resnets.1"),
])
def test_weights_that_cannot_be_used_are_refused_by_the_card(damage, message, tmp_path):
    damage(pipeline(tmp_path))
    with pytest.raises(UserError, match=message): pipeline_card(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value, tmp_path):
    pytest.importorskip("diffusers")
    tensors = weights()
    tensors["conv_in.bias"][0] = value
    with pytest.raises(UserError, match="not finite .conv_in.bias first"):
        load_pipeline(pipeline(tmp_path, tensors=tensors))


# --- google/ddpm-* -----------------------------------------------------------------------------------

def test_the_fields_of_google_mean_what_their_writer_meant(tmp_path):
    "In closed form: rows are padded below and right, sines come first, one head, and the epsilon of the norms."
    pytest.importorskip("diffusers")
    unet = load_pipeline(pipeline(tmp_path, config=GOOGLE)).unet
    x, t = torch.randn(2, 8, 16, 16, generator=generator()), torch.tensor([3, 40])
    half = unet.down_blocks[0].downsamplers[0]
    padded = F.conv2d(F.pad(x, (0, 1, 0, 1)), half.conv.weight, half.conv.bias, stride=2)
    assert torch.allclose(half(x), padded, atol=1e-6) and padded.shape[-2:] == (8, 8)
    angles = t[:, None] * torch.exp(-math.log(10_000) * torch.arange(4) / (4 - 1))
    assert torch.allclose(unet.time_proj(t), torch.cat([angles.sin(), angles.cos()], 1), atol=1e-5)
    assert {m.eps for m in unet.modules() if isinstance(m, torch.nn.GroupNorm)} == {1e-6}
    assert unet.mid_block.attentions[0].heads == 1


CELEBAHQ = GOOGLE | {                                            # google/ddpm-celebahq-256, and its kin
    "_class_name": "UNet2DModel",
    "act_fn": "silu",
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 256,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
}


def test_the_weights_of_google_are_those_that_are_expected(tmp_path):
    "Built by diffusers, without memory: 114 million parameters."
    diffusers = pytest.importorskip("diffusers")
    write(tmp_path / "config.json", CELEBAHQ)
    config = read_unet(tmp_path)
    with torch.device("meta"): unet = diffusers.UNet2DModel(**{k: v for k, v in config.items() if k[0] != "_"})
    shapes = {name: tuple(value.shape) for name, value in unet.state_dict().items()}
    expected = expected_shapes(config)
    assert len(expected) == 2 + 6 * 2 + 6 * 3 and expected.items() <= shapes.items()
    assert 1.1e8 < sum(p.numel() for p in unet.parameters()) < 1.2e8


def test_and_all_of_them_change_what_is_drawn(tmp_path):
    pytest.importorskip("diffusers")
    x, t = torch.randn(1, 3, 16, 16, generator=generator()), torch.tensor([3])
    outputs = [load_pipeline(pipeline(tmp_path / "plain"))(x, t)]
    for field, value in GOOGLE.items():
        if field[0] != "_":
            outputs.append(load_pipeline(pipeline(tmp_path / field, config={field: value}))(x, t))
    assert len({o.sum().item() for o in outputs}) == len(outputs) == 6


@pytest.mark.parametrize("said, meant", [
    ({}, (50, "epsilon", True, "fixed_small")),
    ({"variance_type": None}, (50, "epsilon", True, "fixed_small")),
    ({"predict_epsilon": False}, (50, "sample", True, "fixed_small")),
    ({"predict_epsilon": False, "prediction_type": "v_prediction"}, (50, "v_prediction", True, "fixed_small")),
    ({"predict_epsilon": True, "tensor_format": "pt"}, (50, "epsilon", True, "fixed_small")),
    ({"timesteps": 50, "clip_sample": False, "variance_type": "fixed_large"}, (50, "epsilon", False, "fixed_large")),
    ({"clip_sample": False, "clip_sample_range": 3.0}, (50, "epsilon", False, "fixed_small")),
])
def test_older_schedulers_are_read_as_they_were_meant(said, meant, tmp_path):
    card = pipeline_card(pipeline(tmp_path, schedule=said))
    diffusion = card["diffusion"]
    assert (diffusion["T"], card["prediction"], diffusion["clip"], diffusion["variance"]) == meant


# --- refused, with the field's name ------------------------------------------------------------------

ODD = [
    None, True, False, 0, -3, 1.5, 10**9, 1e9, 1e300, 10**300, "", "16", "linear", [], [16], [16, 24, 3], ["a"], {},
    {"a": 1}, [[16]]]


@pytest.mark.parametrize("table, file", [(UNET, "config"), (SCHEDULER, "schedule")])
def test_any_value_of_any_field_is_a_card_or_a_sentence(table, file, tmp_path):
    refused = 0
    for field in table:
        for value in ODD:
            folder = pipeline(tmp_path, **{file: {field: value}})
            try: pipeline_card(folder)
            except UserError as e:
                refused += 1
                assert (field in str(e) or "num_train_timesteps" in str(e)) and "\n" not in str(e) and len(str(e)) < 600
                assert "config.json" in str(e) or "channels" in field
    assert refused > len(table) * len(ODD) * 0.7


def test_of_a_learned_variance_the_first_half_is_read_and_said(tmp_path):
    pytest.importorskip("diffusers")
    plain = load_pipeline(pipeline(tmp_path / "plain"))
    tensors = weights()
    for name in ("conv_out.weight", "conv_out.bias"): tensors[name] = torch.cat([tensors[name], 9 * tensors[name]])
    for kind in ("learned", "learned_range"):
        said = dict(config={"out_channels": 6}, schedule={"variance_type": kind})
        folder = pipeline(tmp_path / kind, tensors=tensors, **said)
        card = pipeline_card(folder)
        assert card["diffusion"]["variance"] == "fixed_small"
        assert "learned variance is not used" in card["notes"][0]
        x, t = torch.randn(2, 3, 16, 16, generator=generator(0)), torch.tensor([3, 30])
        with torch.no_grad(): assert torch.allclose(load_pipeline(folder)(x, t), plain(x, t), atol=1e-6)


def conditional(folder, label, classes=3):
    "A pipeline whose U-Net knows classes, and the note which of them it draws."
    tensors = weights() | {"class_embedding.weight": torch.randn(classes, 32, generator=generator(5))}
    pipeline(folder, config={"num_class_embeds": classes}, tensors=tensors)
    if label is not None: write(folder / "gradcheck.json", {"class_label": label})
    return folder


def test_a_class_conditional_unet_draws_the_class_that_its_note_names(tmp_path):
    pytest.importorskip("diffusers")
    folders = [conditional(tmp_path / str(label), label) for label in range(3)]
    assert len({pipeline_card(folder)["sha256"] for folder in folders}) == 3
    x, t = torch.randn(2, 3, 16, 16, generator=generator(0)), torch.tensor([3, 30])
    for label, folder in enumerate(folders):
        denoiser = load_pipeline(folder)
        with torch.no_grad():
            drawn = denoiser(x, t)
            assert torch.equal(drawn, denoiser.unet(x, t, class_labels=torch.full((2,), label)).sample)
            assert not torch.allclose(drawn, denoiser.unet(x, t, class_labels=torch.full((2,), (label + 1) % 3)).sample)


@pytest.mark.parametrize("label, message", [
    (None, "num_class_embeds is 3 .* say which class it draws, 0 to 2 .*class_label"),
    (3, "num_class_embeds is 3 .* 0 to 2"),
    (-1, "class_label is -1"),
    ("cat", 'class_label is "cat"'),
])
def test_a_class_that_a_unet_does_not_draw_is_refused(label, message, tmp_path):
    with pytest.raises(UserError, match=message): pipeline_card(conditional(tmp_path, label))


def test_a_class_for_a_unet_that_knows_none_is_refused(tmp_path):
    write(pipeline(tmp_path) / "gradcheck.json", {"class_label": 1})
    with pytest.raises(UserError, match="num_class_embeds is null .* asks for class 1"): pipeline_card(tmp_path)


@pytest.mark.parametrize("change, message", [
    (dict(index={"_class_name": "LDMPipeline", "vqvae": ["diffusers", "VQModel"]}), "latent pipeline .*vqvae"),
    (dict(index={"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]}), "latent .*vae"),
    (dict(index={"_class_name": "LDMPipeline"}), '_class_name is "LDMPipeline" in .*model_index.json'),
    (dict(index={"_class_name": "ScoreSdeVePipeline"}), "_class_name"),
    (dict(index={"text_encoder": ["transformers", "CLIPTextModel"]}), "the part 'text_encoder'"),
    (dict(index={"prior": ["mine", "Prior"]}), "the part 'prior'"),
    (dict(config={"class_embed_type": "timestep"}), 'class_embed_type is "timestep" in .*unconditional'),
    (dict(config={"class_embed_type": "identity"}), "class_embed_type"),
    (dict(config={"num_class_embeds": 10}), "num_class_embeds is 10"),
    (dict(config={"cross_attention_dim": 768}), "cross_attention_dim is 768"),
    (dict(config={"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"]}), "down_block_types"),
    (dict(config={"encoder_hid_dim": 5}), "encoder_hid_dim"),
    (dict(config={"_class_name": "UNet2DConditionModel"}), '"UNet2DConditionModel"'),
    (dict(config={"_class_name": "UNetUnconditionalModel"}), '"UNetUnconditionalModel"'),
    (dict(config={"time_embedding_type": "fourier"}), "time_embedding_type"),
    (dict(config={"time_embedding_type": "learned"}), "num_train_timesteps"),
    (dict(config={"time_embedding_type": "learned", "num_train_timesteps": 9}), "num_train_timesteps is 9"),
    (dict(config={"block_out_channel": [8, 16]}), "'block_out_channel', which is no field"),
    (dict(config={"block_out_channels": [8, 16, 16]}), "down_block_types .* 3 levels"),
    (dict(config={"out_channels": 6}), "out_channels is 6 .*learned variance"),
    (dict(config={"in_channels": 4, "out_channels": 4}), "conv_in"),
    (dict(config={"sample_size": 15}), "sample_size is 15 .*halved 1 times"),
    (dict(config={"norm_num_groups": 3}), "norm_num_groups is 3"),
    (dict(config={"attention_head_dim": 9}), "attention_head_dim is 9"),
    (dict(schedule={"_class_name": "PNDMScheduler"}), '"PNDMScheduler"'),
    (dict(schedule={"thresholding": True}), "thresholding is true"),
    (dict(schedule={"rescale_betas_zero_snr": True}), "rescale_betas_zero_snr"),
    (dict(schedule={"trained_betas": [0.1]}), "trained_betas"),
    (dict(schedule={"clip_sample_range": 2}), "clip_sample_range is 2"),
    (dict(schedule={"prediction_type": "flow"}), "prediction_type"),
    (dict(schedule={"variance_type": "learned_range"}), "variance_type"),
    (dict(schedule={"beta_schedule": "sigmoid"}), "beta_schedule"),
    (dict(schedule={"timesteps": 60}), "num_train_timesteps = 50 and, in an older field, 60"),
    (dict(schedule={"predict_epsilon": True, "prediction_type": "sample"}), "prediction_type"),
    (dict(schedule={"predict_epsilon": "no"}), "predict_epsilon"),
    (dict(schedule={"num_train_timesteps": 100_000}), "leave nothing of the image"),
    (dict(schedule={"predicton_type": "sample"}), "'predicton_type', which is no field; write prediction_type"),
])
def test_what_would_be_read_otherwise_than_meant_is_refused(change, message, tmp_path):
    with pytest.raises(UserError, match=message): pipeline_card(pipeline(tmp_path, **change))


@pytest.mark.parametrize("name", ["vae", "vqvae", "text_encoder"])
def test_without_an_index_the_folders_count(name, tmp_path):
    (pipeline(tmp_path) / "model_index.json").unlink()
    assert pipeline_card(tmp_path)["shape"] == (3, 16, 16)
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"part '?{name}"): pipeline_card(tmp_path)


def test_fields_that_nobody_reads_are_passed_over(tmp_path):
    more = {"decay": 0.9999, "use_ema_warmup": True, "_name_or_path": "mine", "note": [[1]]}
    folder = pipeline(tmp_path, config=more, schedule={"steps_offset": 1, "algorithm_type": "dpmsolver++"})
    (folder / "samples").mkdir()
    assert pipeline_card(folder)["shape"] == (3, 16, 16)


def test_four_channels_are_latents(tmp_path):
    four = weights(UNetConfig(size=16, channels=4, widths=(8, 16), attention=(False, True), layers=1, groups=4))
    folder = pipeline(tmp_path, config={"in_channels": 4, "out_channels": 4}, tensors=four)
    with pytest.raises(UserError, match="in_channels is 4 .* 1 or 3"): pipeline_card(folder)


DAMAGE = {
    "an empty file": b"",
    "a list": b"[]",
    "null": b"null",
    "a number": b"5",
    "a text": b'"x"',
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "not UTF-8": '{"ä": 1}'.encode("latin-1"),
    "UTF-16": "{}".encode("utf-16"),
    "a name twice": b'{"_class_name": "a", "_class_name": "b"}',
    "no number": b'{"T": NaN}',
    "a long number": b'{"T": ' + b"9" * 5000 + b"}",
    "half an object": b'{"_class_name": ',
    "a null byte": b"{}\0",
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_json_that_is_none_is_a_sentence_with_the_file(part, damage, tmp_path):
    folder = shards(pipeline(tmp_path))
    (folder / part).write_bytes(DAMAGE[damage])
    with pytest.raises(UserError) as e: pipeline_card(folder)
    assert part in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("part", PARTS[1:3])
def test_a_part_that_is_missing_or_a_folder(part, tmp_path):
    (pipeline(tmp_path) / part).unlink()
    with pytest.raises(UserError, match=part): pipeline_card(tmp_path)
    (tmp_path / part).mkdir()
    with pytest.raises(UserError, match=part): pipeline_card(tmp_path)


def test_a_byte_order_mark_is_no_fault(tmp_path):
    path = pipeline(tmp_path) / "scheduler_config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert pipeline_card(tmp_path)["diffusion"]["T"] == 50


def test_a_folder_beside_the_right_one_says_which_that_is(tmp_path):
    inside = pipeline(tmp_path / "models--a--b" / "snapshots" / "0f")
    with pytest.raises(UserError, match="give the folder '.*snapshots/0f' inside"):
        pipeline_card(tmp_path / "models--a--b")
    pipeline(inside, nested=("unet",))
    (inside / "config.json").unlink()
    with pytest.raises(UserError, match="scheduler.*give the folder above, '.*0f'"): pipeline_card(inside / "unet")


@pytest.mark.parametrize("name", [
    "google/ddpm-cifar10-32", "https://huggingface.co/google/ddpm-cifar10-32/", "hf://google/ddpm-cifar10-32"])
def test_a_model_of_a_hub_is_not_fetched_but_said(name):
    with pytest.raises(UserError, match=(
        "hf download google/ddpm-cifar10-32 --local-dir data/ddpm-cifar10-32, and give the folder data/ddpm-cifar10-32"
    )): refuse_hub_id(name)


@pytest.mark.parametrize("name", ["a/b.safetensors", "mine.py:make", "ddpm", "/a/b", "a/b/c", "../a/b", ""])
def test_other_names_are_none_of_a_hub(name): refuse_hub_id(name)


def test_a_slip_in_a_name_of_ours_is_none_of_a_hub():
    refuse_hub_id("laptop/dpm", ["laptop", "paper"])
    with pytest.raises(UserError, match="hf download"): refuse_hub_id("laptop/dpm")


def test_weights_that_may_not_be_read_are_a_sentence(tmp_path, monkeypatch):
    def refused(*_, **__): raise PermissionError("Permission denied")
    folder = pipeline(tmp_path)
    monkeypatch.setattr("gradcheck.models.folders.safe_open", refused)
    with pytest.raises(UserError, match="cannot be read as safetensors"): pipeline_card(folder)


# --- keys --------------------------------------------------------------------------------------------

def changed_index(folder):
    path = shards(folder) / f"{STEM}.safetensors.index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    moved = {k.replace("-00002-of", "-00003-of"): v for k, v in index["weight_map"].items()}
    write(path, {"metadata": {"total_size": 1}, "weight_map": moved})


CHANGES = {
    "prediction_type": dict(schedule={"prediction_type": "sample"}),
    "clip_sample": dict(schedule={"clip_sample": False}),
    "variance_type": dict(schedule={"variance_type": "fixed_large"}),
    "beta_end": dict(schedule={"beta_end": 0.03}),
    "beta_schedule": dict(schedule={"beta_schedule": "scaled_linear"}),
    "num_train_timesteps": dict(schedule={"num_train_timesteps": 60}),
    "norm_eps": dict(config={"norm_eps": 1e-6}),
    "downsample_padding": dict(config={"downsample_padding": 0}),
    "weights": dict(tensors={k: v + 1 for k, v in weights().items()}),
}


def test_whatever_decides_a_picture_is_in_the_digest(tmp_path):
    digests = {pipeline_card(pipeline(tmp_path / name, **change))["sha256"] for name, change in CHANGES.items()}
    digests.add(pipeline_card(pipeline(tmp_path / "plain"))["sha256"])
    changed_index(pipeline(tmp_path / "index"))
    digests |= {pipeline_card(tmp_path / "index")["sha256"], pipeline_card(shards(pipeline(tmp_path / "b")))["sha256"]}
    assert len(digests) == len(CHANGES) + 3


def test_pipelines_that_differ_in_their_prediction_alone_share_no_key(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef make(): return nn.Sequential(nn.Flatten(), nn.Linear(768, 3))\n", encoding="utf-8")
    specs = [
        RunSpec(
            denoiser=str(pipeline(tmp_path / kind, schedule={"prediction_type": kind})),
            classifier=f"{tmp_path}/mine.py:make",
            judge=None,
            steps=2,
            start="standard",
        )
        for kind in ("epsilon", "sample", "v_prediction")
    ]
    for spec in specs: object.__setattr__(spec, "denoiser", "the same name")
    assert len({spec.key for spec in specs}) == 3


# --- one channel -------------------------------------------------------------------------------------

def test_one_channel_is_sampled_from_the_command_line(tmp_path, cli):
    pytest.importorskip("diffusers")
    grey = weights(UNetConfig(size=28, channels=1, widths=(8, 16), attention=(False, True), layers=1, groups=4))
    pipeline(tmp_path / "p", config={"sample_size": 28, "in_channels": 1, "out_channels": 1}, tensors=grey)
    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef make(): return nn.Sequential(nn.Flatten(), nn.Linear(784, 3))\n", encoding="utf-8")
    code, _, err = cli(
        "sample",
        "--denoiser", tmp_path / "p",
        "--classifier", f"{tmp_path}/mine.py:make",
        "--target", "0",
        "--steps", "2",
        "--count", "2",
        "--out", tmp_path / "out",
    )
    assert code == 0, err
    assert pipeline_card(tmp_path / "p")["shape"] == (1, 28, 28) and list((tmp_path / "out").rglob("*.png"))


@pytest.fixture
def two_denoisers(tmp_path):
    "One on patches with a matched start beside it, one without either."
    for name, patch in (("a", 2), ("b", 1)):
        config = UNetConfig(size=16 * patch, patch=patch, widths=(8, 16), attention=(False, True), layers=1, groups=4)
        with seeded(0): save_weights(UNet(config), tmp_path / name / "ddpm.safetensors", dict(diffusion=dict(T=50)))
    save_weights(load_start("laptop/start"), tmp_path / "a" / "start.safetensors", {})
    return tmp_path


def test_an_export_into_an_earlier_ones_folder_leaves_nothing_of_it(two_denoisers):
    pytest.importorskip("diffusers")
    out = two_denoisers / "out"
    export_denoiser(two_denoisers / "a" / "ddpm.safetensors", out)
    assert has_start(out) and read_patch(out) == 2
    export_denoiser(two_denoisers / "b" / "ddpm.safetensors", out)
    assert not has_start(out) and read_patch(out) == 1 and pipeline_card(out)["shape"] == (3, 16, 16)
    assert {p.name for p in out.iterdir()} == {"unet", "scheduler", "model_index.json"}


@pytest.mark.parametrize("killed_at", ["write_start", "write_patch", "save_pipeline"])
def test_an_export_that_was_killed_is_no_pipeline(two_denoisers, monkeypatch, killed_at):
    diffusers, out = pytest.importorskip("diffusers"), two_denoisers / "out"
    export_denoiser(two_denoisers / "a" / "ddpm.safetensors", out)
    def kill(*of, **how): raise KeyboardInterrupt
    if killed_at == "save_pipeline": monkeypatch.setattr(diffusers.DDPMScheduler, "save_pretrained", kill)
    else: monkeypatch.setattr(exports, killed_at, kill)
    with pytest.raises(KeyboardInterrupt): export_denoiser(two_denoisers / "b" / "ddpm.safetensors", out)
    with pytest.raises(UserError, match="config.json"): pipeline_card(out)


def test_an_export_touches_no_start_but_an_exports_own(two_denoisers):
    pytest.importorskip("diffusers")
    before = {p.name: p.read_bytes() for p in (two_denoisers / "a").iterdir()}
    with pytest.raises(UserError, match="matched start of another denoiser; choose another folder"):
        export_denoiser(two_denoisers / "b" / "ddpm.safetensors", two_denoisers / "a")
    assert {p.name: p.read_bytes() for p in (two_denoisers / "a").iterdir()} == before
