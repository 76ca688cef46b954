"""Pipelines as hubs and disks hold them, and as they cannot be read."""
import json

from damage import Case, replace


def layouts():
    "A pipeline as hubs hold it: the same pictures, or a sentence."
    stem = "unet/diffusion_pytorch_model"

    def case(name, change, legal=False):
        return Case(f"pipe: {name}", lambda stage: change(stage / "pipe"), legal)

    def flat(pipe):
        for path in [*(pipe / "unet").iterdir(), *(pipe / "scheduler").iterdir()]: path.rename(pipe / path.name)
        (pipe / "unet").rmdir()
        (pipe / "scheduler").rmdir()

    def renamed(new): return lambda pipe: (pipe / f"{stem}.safetensors").rename(pipe / new)

    def edited(file, **fields):
        def change(pipe):
            known = json.loads((pipe / file).read_text(encoding="utf-8"))
            replace(pipe / file, json.dumps(known | fields).encode())
        return change

    def index(pipe, text='{"weight_map": {"conv_in.weight": "gone.safetensors"}}'):
        replace(pipe / f"{stem}.safetensors.index.json", text.encode())

    yield case("flat", flat)
    yield case("fp16", renamed(f"{stem}.fp16.safetensors"))
    yield case("pickled", renamed(f"{stem}.bin"))
    yield case("an index that names no file", index)
    yield case("an index alone", lambda pipe: (index(pipe), (pipe / f"{stem}.safetensors").unlink()))
    yield case("a latent pipeline", edited("model_index.json", _class_name="LDMPipeline", vqvae=["diffusers", "VQ"]))
    yield case("classes by timestep", edited("unet/config.json", class_embed_type="timestep"))
    yield case("classes", edited("unet/config.json", num_class_embeds=10))
    yield case("T = 1e9", edited("scheduler/scheduler_config.json", num_train_timesteps=10**9))
    yield case("no norm", edited("unet/config.json", norm_num_groups=0))
    yield case("v_prediction", edited("scheduler/scheduler_config.json", prediction_type="v_prediction"), legal=True)
