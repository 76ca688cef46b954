"""`gradcheck reproduce` with a denoiser, a classifier and data of one's own, by the notebooks that make the paper's
figures."""

import json
from functools import partial

import pandas as pd
import pytest
import torch
from PIL import Image
from test_celeba import paint
from test_interop import CLASSIFIER, make_pipeline

from gradcheck.app.diagnose import diagnose
from gradcheck.app.explorer import explore
from gradcheck.models.checkpoints import save_weights
from gradcheck.core import UserError
from gradcheck.paper.presets import get_preset
from gradcheck.paper.curves import features_of
from gradcheck.paper.settings import folder_of, in_mode, preset_for, spec_for
from gradcheck.paper.quirks import DEFAULT_MODE, parse_mode
from gradcheck.paper.saved import sidecar_of
from gradcheck.paper.figures import FIGURES, figure_specs
from gradcheck.data.images import ImageFolder
from gradcheck.runs.evaluation import judged_by
from gradcheck.runs.records import digests_of
from gradcheck.runs.runs import run
from gradcheck.runs.specs import PROBE, RunSpec
from gradcheck.data.sources import open_data
from gradcheck.core import seeded
from gradcheck.models.unet import UNet, UNetConfig

pytest.importorskip("diffusers")


@pytest.fixture
def mine(tmp_path):
    "A pipeline folder for 16 x 16, a file with classifiers, and a folder with three classes of pictures."
    make_pipeline(tmp_path / "pipeline", clip_sample=True)
    (tmp_path / "mine.py").write_text(CLASSIFIER)
    for k, name in enumerate(("blue", "green", "red")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(40):
            Image.new("RGB", (24, 20), tuple(60 + (i * 3 if c == 2 - k else 0) for c in range(3))).save(
                tmp_path / "pictures" / name / f"{i}.png"
            )
    return tmp_path


def test_figures_and_table_for_models_of_ones_own(mine, cli, monkeypatch):
    # relative names, away from the project ...
    monkeypatch.chdir(mine)
    root = __import__("pathlib").Path(__file__).parents[2]
    # ... whose notebooks are used
    monkeypatch.setattr("gradcheck.paper.reproduce.project_root", lambda: root)
    code, out, err = cli(
        "reproduce",
        "--preset",
        "smoke",
        "--denoiser",
        "pipeline",
        "--classifier",
        "mine.py:make",
        "--data",
        "pictures",
        "--out",
        mine / "out",
        "--seed",
        1,
    )
    assert code == 0, err
    folder, = (mine / "out").glob("own-*")
    made = [p.stem for p in folder.glob("figure_?.png")] + [p.stem for p in folder.glob("table_1.png")]
    assert sorted(made) == ["figure_1", "figure_2", "figure_3", "figure_5", "table_1"]
    table = pd.read_csv(folder / "table_1.csv")
    assert table["variant"].tolist() == [
        "no guidance",
        *(f"classifier, {v}" for v in ("no modification", "x̂₀-prediction", "ADAM", "x̂₀-prediction + ADAM")),
        "floor: real images",
    ]
    assert (
        "brightness off (grey levels)" in table
        and "one ball" not in table
        and table["FID (judge), target"].notna().tolist() == [True] * 5 + [False]          # so few are held back
    )
    sidecar = json.loads((folder / "figure_2.json").read_text(encoding="utf-8"))
    assert all(
        r["denoiser"].endswith("pipeline")
        and r["judge"] == r["classifier"]
        and r["start"] == "standard"
        and r["T"] == 50
        and r["scale"] > 0
        for r in sidecar["runs"].values()
    )
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "models of your own" in page and "the guide judges itself" in page


def test_figures_and_table_on_celeba(tmp_path, cli):
    """Painted pictures in the official layout, a denoiser for 16 x 16 with its card, a classifier with two logits: the
    classes are the attribute's."""
    paint(tmp_path / "celeba", 120)
    with seeded(0):
        net = UNet(
            UNetConfig(
                size=16, widths=(8, 16), attention=(False, True), layers=1, groups=4, head_dim=4, prediction="sample"
            )
        )
    save_weights(net, tmp_path / "tiny.safetensors", dict(diffusion=dict(T=50, clip=True)))
    (tmp_path / "mine.py").write_text(CLASSIFIER)
    models = (
        "--denoiser",
        tmp_path / "tiny.safetensors",
        "--classifier",
        f"{tmp_path}/mine.py:make_two",
        "--data",
        f"celeba:{tmp_path}/celeba:Male",
    )
    code, out, err = cli(
        "reproduce",
        "figure_1",
        "figure_5",
        "table_1",
        "--preset",
        "smoke",
        *models,
        "-p",
        "target=1",
        "--out",
        tmp_path / "out",
    )
    assert code == 0, err
    folder, = (tmp_path / "out").glob("own-*")
    assert (
        all(
            (folder / f"{name}.png").is_file() and (folder / f"{name}.csv").is_file()
            for name in ("figure_1", "figure_5", "table_1")
        )
        and "index.html" in out
    )
    table, runs = (
        pd.read_csv(folder / "table_1.csv"),
        json.loads((folder / "table_1.json").read_text(encoding="utf-8"))["runs"],
    )
    guided = [r for r in runs.values() if r["where"] != "unguided"]
    assert {(r["T"], r["target"], r["objective"]) for r in guided} == {(50, 1, "logit")}
    assert table["FID (judge), target"].notna().all()
    code, _, err = cli("reproduce", "figure_1", *models, "-p", "target=2", "--out", tmp_path / "out")
    assert code == 2 and "target class 2 was given; the classes are 0 (0), 1 (1)" in err
    code, _, err = cli(
        "reproduce", "table_1", *models[:4], "--data", f"celeba:{tmp_path}/celeba:Mal", "--out", tmp_path / "out"
    )
    assert code == 2 and "Did you mean 'Male'?" in err


@pytest.mark.parametrize(
    "args, message",
    [
        (("--denoiser", "pipeline"), "give both a denoiser and a classifier"),
        (("--classifier", "mine.py:make"), "give both a denoiser and a classifier"),
        (("--denoiser", "nowhere", "--classifier", "mine.py:make"), "no weights"),
        (("--denoiser", "pipeline", "--classifier", "laptop/robust"), "give models for the same images"),
        (("--denoiser", "pipeline", "--classifier", "mine.py:make"), "give --data"),
        (("figure_1", "--denoiser", "pipeline", "--classifier", "mine.py:make", "-p", "target=3"), "target class 3"),
        (("--denoiser", "pipeline", "--classifier", "mine.py:binary", "--data", "pictures"), "have 3 classes"),
        (("--denoiser", "pipeline", "--classifier", "mine.py:make", "--data", "picture"), "no data set"),
        (
            ("claims", "--denoiser", "pipeline", "--classifier", "mine.py:make", "--data", "pictures"),
            "give both (--robust",
        ),
        (("figure_1", "--mode", "papr"), "Did you mean 'paper'?"),
        (("figure_1", "--mode", "start=wrong"), "corrected, paper"),
        (("figure_1", "--mode", "stat=paper"), "Did you mean 'state'?"),
        (("figure_1", "--memory", "much"), "write it as 8GB"),
        (("figure_1", "--device", "cuda"), "torch sees 0 GPUs"),
        (("figure_1", "--preset", "paper"), "not bundled"),
        (("figure_1", "--dask", "tcp://127.0.0.1:9"), "no Dask scheduler answered"),
    ],
)
def test_bad_input_is_one_sentence(args, message, mine, cli, monkeypatch, own_cache):
    if message == "torch sees 0 GPUs" and __import__("torch").cuda.is_available(): pytest.skip("there is a GPU")
    args = [
        str(mine / a.partition(":")[0]) + "".join(a.partition(":")[1:])
        if a.partition(":")[0] in ("pipeline", "mine.py", "pictures")
        else a
        for a in args
    ]
    code, _, err = cli("reproduce", *args, "--out", mine / "out")
    assert code == 2 and message in err and "Traceback" not in err and err.splitlines()[-1].startswith("gradcheck: ")
    assert not list(own_cache.rglob("*.safetensors"))


def test_modes():
    assert parse_mode("corrected") == DEFAULT_MODE and set(parse_mode("paper").values()) == {"paper"}
    paper = in_mode(get_preset("laptop"), "paper")
    spec = spec_for(paper, "nonrobust", "adam")
    assert (spec.start, spec.objective, spec.state, spec.stabilizer, spec.judge, spec.scale) == (
        "standard",
        "logit",
        "float16",
        "adam",
        spec.classifier,
        PROBE,
    )
    assert (
        paper.data == "sportballs:coupled"
        and paper.classifiers == {"robust": "coupled/robust", "nonrobust": "coupled/nonrobust"}
        and (paper.denoiser, spec.denoiser) == ("coupled/ddpm", "coupled/ddpm")
        and paper.name == "laptop-paper"
        and paper.judge == "laptop/judge"
    )
    one = in_mode(get_preset("laptop"), "adam=corrected,clip=corrected")
    assert (
        spec_for(one, "robust", "both").stabilizer == "adam_corrected"
        and spec_for(one, "robust", "both").diffusion.clip is False
        and spec_for(one, "robust", "both").start == "matched"
    )
    assert (
        in_mode(get_preset("laptop"), "corrected") is get_preset("laptop")
        and preset_for("laptop", mode="start=corrected") is not None
    )


def test_words_say_who_judges():
    "The run's judge and the one whose features a Fréchet distance compares are two: a mode changes the first alone."
    own = dict(denoiser="laptop/ddpm", classifier="laptop/nonrobust", data="sportballs")
    two = dict(own, robust="laptop/robust")
    for given, who, features in (
        (dict(), "the independent judge", "judge"),
        (dict(mode="judge=paper"), "the guide itself", "judge"),
        (own, "the guide itself", "the guide"),
        (two, "the guide itself", "the non-robust guide"),
        (dict(two, judge="laptop/judge"), "the independent judge", "judge"),
    ):
        p = preset_for("smoke", **given)
        assert judged_by(spec_for(p, list(p.classifiers)[-1], "plain")) == who and features_of(p) == features


def test_every_figure_of_two_classifiers_has_the_paper_curves():
    assert (
        set(figure_specs("figure_1", "laptop")) == {"robust", "non-robust"}
        and len(figure_specs("figure_2", "laptop")) == 4
        and len(FIGURES) == 15
    )


@pytest.mark.parametrize("given", [
    dict(denoiser="laptop/ddpm", classifier=torch.nn.Linear(2, 2)),
    dict(denoiser=torch.nn.Linear(2, 2), classifier="laptop/nonrobust"),
    dict(denoiser="laptop/ddpm", classifier="laptop/nonrobust", data=3),
])
def test_models_are_given_by_name(given, tmp_path):
    "In Python, somebody gives the model itself."
    for call in (partial(preset_for, "laptop"), partial(diagnose, out=tmp_path)):
        with pytest.raises(UserError, match="given as a (Linear|int); give its name: a file, a folder, or MODULE"):
            call(**given)
    assert "give its name" in explore(**given).value


def test_paths_are_names_too(mine):
    "As the texts that JSON keeps of them."
    names = dict(denoiser="pipeline", classifier="mine.py:make", data="pictures")
    paths = {role: mine / name for role, name in names.items()}
    p = preset_for("laptop", **paths, judge=paths["classifier"])
    assert (p.judge, p.data) == (str(paths["classifier"]), str(paths["data"]))
    fields = {role: paths.get(role, paths["classifier"]) for role in ("denoiser", "classifier", "judge")}
    small = dict(steps=2, count=1, start="standard", clip=True)
    spec = RunSpec(**fields, **small)
    assert spec == RunSpec(**{role: str(path) for role, path in fields.items()}, **small)
    assert len(run(spec).samples) == 1


def test_folders_and_names_that_are_no_data(tmp_path):
    with pytest.raises(UserError, match="at least two"): ImageFolder(tmp_path)
    for name in "ab": (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="holds no pictures"): ImageFolder(tmp_path)
    for name in "ab": (tmp_path / name / "x.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="every class needs two"): ImageFolder(tmp_path)
    (tmp_path / "d.py").write_text("def data(): return 3")
    for name, message in (
        (f"{tmp_path}/d.py:data", "is a int"),
        ("sportsballs", "no data set"),
        ("celeba:/nowhere:Male", "get list_attr_celeba"),
    ):
        with pytest.raises(UserError, match=message): open_data(name)


STABILIZER = "from gradcheck.guidance.stabilizers import Stabilizer\nclass S(Stabilizer): pass\n"


@pytest.mark.parametrize("shape, fits", [((3, 32, 32), True), ((3, 32, 48), False)])
def test_data_are_squares_and_a_denoiser_of_rectangles_has_none(monkeypatch, shape, fits):
    monkeypatch.setattr("gradcheck.paper.presets.denoiser_card", lambda name: dict(shape=shape))
    if fits: assert get_preset("smoke").reference.shape == shape
    else:
        with pytest.raises(UserError, match="images of 32 x 48, and data are read as squares"):
            get_preset("smoke").reference


def test_a_sidecar_tells_code_and_pictures_of_ones_own_apart_under_the_same_names(mine):
    name, pictures = f"{mine}/s.py:S", str(mine / "pictures")
    (mine / "s.py").write_text(STABILIZER)

    def told():
        p = preset_for("smoke", stabilizer=name, denoiser=str(mine / "pipeline"), classifier=f"{mine}/mine.py:make",
                       data=pictures)
        specs = figure_specs("table_1", p, scales=lambda spec, energies: [spec.scale for _ in energies])
        return digests_of(sidecar_of("table_1", p, specs, dict(preset="smoke"), 1.0))

    before = told()
    assert {name, pictures, str(mine / "pipeline"), f"{mine}/mine.py:make"} <= before.keys()
    (mine / "s.py").write_text(STABILIZER + "A = 2\n")
    (mine / "pictures" / "red" / "0.png").write_bytes((mine / "pictures" / "red" / "1.png").read_bytes())
    after = told()
    assert {known for known in before if before[known] != after[known]} == {name, pictures}
    assert "sportballs" not in digests_of(sidecar_of("table_1", get_preset("smoke"), {}, dict(preset="smoke"), 1.0))


def test_one_class_in_two_files_has_two_folders(tmp_path):
    for file in ("a.py", "b.py"): (tmp_path / file).write_text(STABILIZER)
    a, b = (preset_for("smoke", stabilizer=f"{tmp_path}/{file}:S").name for file in ("a.py", "b.py"))
    assert a != b and a.startswith("smoke-S-") and preset_for("smoke", stabilizer=f"{tmp_path}/a.py:S").name == a
    assert len({preset_for("smoke", stabilizer=name).name for name in ("adam", "adam_corrected", "ema")}) == 3
    assert preset_for("smoke", stabilizer="ema").name == "smoke-ema"


def test_models_of_ones_own_under_two_presets_have_two_folders(mine):
    own = dict(denoiser=str(mine / "pipeline"), classifier=f"{mine}/mine.py:make")
    laptop, smoke = (folder_of(preset_for(name, **own), {}) for name in ("laptop", "smoke"))
    assert laptop.startswith("own-mine-") and smoke == f"{laptop}-smoke"
