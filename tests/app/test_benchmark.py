"""What the benchmark compares is the same work, and what it says can be read."""
import pytest
import torch

from gradcheck.app import benchmark
from gradcheck.app.benchmark import batch_lines, beside_diffusers, peak_rate, time_batch, time_batches
from gradcheck.core import randn
from gradcheck.guidance.sampling import guided_steps
from gradcheck.models import networks
from gradcheck.paper.settings import spec_for
from gradcheck.runs.loops import diffusers_loop, operations, pipeline_of, plain_loop
from gradcheck.runs.runs import guidance_of, models

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def setting(variant, **fields): return spec_for("laptop", "nonrobust", variant, steps=3, count=2, **fields)


@pytest.mark.parametrize("variant", ["unguided", "plain"])
def test_the_plain_loop_samples_what_we_sample(variant):
    spec = setting(variant)
    *_, theirs = plain_loop(spec, 2)
    g = torch.Generator().manual_seed(0)
    x_T = randn((2, *spec.shape), g)
    *_, ours = guided_steps(spec.diffusion, models(spec)[0], guidance_of(spec), x_T, g, spec.steps)
    assert torch.allclose(ours.x_prev, theirs, atol=1e-4)


def test_the_loop_of_diffusers_is_that_of_its_pipeline():
    pytest.importorskip("diffusers")
    spec = setting("unguided")
    pipeline = pipeline_of(spec)
    pipeline.set_progress_bar_config(disable=True)
    *_, last = diffusers_loop(pipeline, spec, 2)
    g = torch.Generator().manual_seed(0)
    whole = pipeline(batch_size=2, generator=g, num_inference_steps=3, output_type="pt").images
    assert torch.allclose((last / 2 + 0.5).clamp(0, 1), whole, atol=1e-5)


def test_operations_are_counted_through_the_backward_pass():
    w = torch.ones(4, 4, requires_grad=True)
    x = torch.ones(4, 4)
    assert operations(lambda: x @ x) == 2 * 4**3
    assert operations(lambda: torch.autograd.grad((x @ w).sum(), w)) == 2 * 2 * 4**3


def test_a_row_compares_what_takes_turns(monkeypatch):
    monkeypatch.setattr(benchmark, "in_turns", lambda calls, repeats, what: {name: 2.0 for name in calls})
    row = time_batch("laptop", 1, "float32", peak=1e9, repeats=1, pipeline=pipeline_of(setting("unguided")))
    assert row["unguided to loop"] == row["plain to loop"] == row["unguided to diffusers"] == 1
    assert row["plain to diffusers and classifier"] == 0.5
    assert 0 < row["unguided of peak"] < row["plain of peak"]


@pytest.mark.parametrize("images, sizes", [(1, [1]), (5, [1, 4, 5]), (16, [1, 4, 8, 16]), (64, [1, 4, 8, 16, 64])])
@pytest.mark.parametrize("half, precisions", [(1.0, ["float32"]), (9.0, ["float32", "bfloat16"])])
def test_which_rows_there_are(monkeypatch, images, sizes, half, precisions):
    "A precision for which the machine has no units is not measured."
    monkeypatch.setattr(benchmark, "pipeline_of", lambda spec: None)
    def peak(precision, size=2048): return {"float32": 2.0, "bfloat16": half}[precision]
    for module in (benchmark, networks): monkeypatch.setattr(module, "peak_rate", peak)
    monkeypatch.setattr(benchmark, "time_batch", lambda preset, n, precision, *rest: (n, precision))
    rows = time_batches("laptop", images)["batches"]
    assert rows == [(n, precision) for precision in precisions for n in sizes]


def test_lines_stand_under_their_heads():
    row = dict(images=8, precision="float32", seconds={"ours, unguided": 0.0373, "ours, plain": 0.0517})
    row |= {"unguided to loop": 0.99, "plain to loop": 1.01, "unguided of peak": 0.57, "plain of peak": 0.43}
    whole = row | {"unguided to diffusers": 0.92, "plain to diffusers and classifier": 0.95}
    peak, head, first, second = batch_lines(dict(operations_per_second={"float32": 195e9}, batches=[whole, row]))
    assert "195 GFLOP/s" in peak and len(head) == len(first) == len(second)
    assert first.split() == "8 float32 37.3 ms 0.99 0.92 51.7 ms 1.01 0.95 57% 43%".split()
    assert second.split().count("nan") == 2
    assert list(batch_lines({})) == [] and beside_diffusers([row]) == {}


def test_a_memory_that_cannot_be_told_is_left_out(monkeypatch):
    monkeypatch.setattr(benchmark, "PEAK", "raise SystemExit(9)  # {preset!r} {images} {micro_batch}")
    assert benchmark.peak_memory() is None
    nothing = dict.fromkeys(("data_images_per_second_one_thread", "training_step_seconds",
                             "training_wait_for_data_seconds"), 0.0)
    told = dict(images=4, step_seconds={}, cluster={}, peak_gib_of_x0_hat_step_by_images={4: 0.5, 16: None}) | nothing
    some, none = [line for line in benchmark.benchmark_lines(told) if line.startswith("peak memory")]
    assert "0.50 GiB" in some and "not known" in none


def test_a_peak_is_a_number_of_operations_per_second():
    assert 1e8 < peak_rate("float32", size=256) < 1e15
