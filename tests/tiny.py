"Models of somebody, too small for anything but a test, and a training that is stopped by hand."

from contextlib import contextmanager

import pytest

from gradcheck.models.training import Trainer

CLASSIFIER = """
import torch

def make():
    net = torch.nn.Sequential(torch.nn.Conv2d({channels}, 8, 3, 2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
                              torch.nn.Flatten(), torch.nn.Linear(8, {classes}))
    net.class_names = {names!r}
    return net
"""


def own_models(folder, channels=3, size=16, names=("no", "yes")):
    "A pipeline folder of diffusers and a classifier for its images; the names of both."
    diffusers = pytest.importorskip("diffusers")
    net = dict(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=50)
    pipeline = diffusers.DDPMPipeline(diffusers.UNet2DModel(**net), scheduler)
    pipeline.save_pretrained(folder / "pipeline", safe_serialization=True)
    source = CLASSIFIER.format(channels=channels, classes=len(names), names=list(names))
    (folder / "mine.py").write_text(source, encoding="utf-8")
    return dict(denoiser=str(folder / "pipeline"), classifier=f"{folder / 'mine.py'}:make")


@contextmanager
def stopped_at(step):
    "Inside, a training that has made so many steps writes its checkpoint and is stopped by hand."
    train_step = Trainer.train_step
    def stopped(trainer, *batch):
        if trainer.step == step:
            trainer.save()
            raise KeyboardInterrupt
        return train_step(trainer, *batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", stopped)
        yield
