"""Every command with each of its options, as the command line itself lists them, at tiny, huge, negative, non-ASCII and
wrong-typed values: done, refused in a sentence, or at work until Ctrl-C stops it."""
import fixtures
import pytest
from verdicts import Tally, is_sentence, target, verdict, written
from worlds import FOLDER, MODELS, SAMPLE, TRAIN, copied

pytestmark = pytest.mark.slow
warm = fixtures.warm
world = fixtures.world
VALUES = {
    "tiny": ("0", "1e-300"),
    "huge": ("1e300", "1000000000", "99999999999999999999", "x" * 5000),
    "negative": ("-1",),
    "non-ASCII": ("é\u2603", "\udce9"),
    "wrong type": ("", "abc", "nan", "1.5", "[]", "afile/x"),
}
BASES = {   # a small, healthy call of each command: its arguments, its options
    "sample": ((), (*SAMPLE[1:], *MODELS)),
    "reproduce": (("figure_1",), ("--preset", "smoke", "--plan")),
    "compare": (("results",), ("--reference", "reference")),
    "train": (TRAIN[1:2], (*TRAIN[2:], *FOLDER, "--out", "out")),
    "export": (("d/ddpm.safetensors",), ("--out", "out")),
    "evaluate": ((), ("--preset", "smoke", "--count", "1", "--images", "1")),
    "bench": ((), ("--preset", "smoke", "--images", "1", "--threads", "1", "--repeats", "1")),
    "diagnose": ((), ("--denoiser", "d/ddpm.safetensors", "--classifier", "c/nonrobust.safetensors", "--out", "out")),
    "info": ((), ()),
}
PATIENCE = {"bench": 4.0, "evaluate": 8.0}                 # seconds of CPU until it is stopped; 12 for the others


def commands():
    "name -> click's command, as typer makes them."
    from gradcheck.cli import app
    from typer.main import get_command

    return get_command(app).commands


def calls(name, command):
    "(what is tried, the arguments of the call) for a command."
    arguments, options = BASES.get(name, ((), ()))
    for parameter in command.params:
        flags = [flag for flag in (*parameter.opts, *parameter.secondary_opts) if flag.startswith("--")]
        if parameter.param_type_name == "option" and getattr(parameter, "is_flag", False):
            for flag in flags:
                yield flag, (name, *arguments, *options, flag)
                yield f"{flag}=1", (name, *arguments, *options, f"{flag}=1")
            continue
        for kind, values in VALUES.items():
            for value in values:
                label = f"{(flags or [parameter.name])[0]} {kind}: {ascii(value)[:30]}"
                if flags: yield label, (name, *arguments, *options, flags[0], value)
                else: yield label, (name, value, *options)


def word_for(done, codes):
    "The verdict; a call that was still at work must have stopped at Ctrl-C, with one sentence."
    if not done.cut: return verdict(done, "what it made", "the usual", legal=True, codes=codes)
    if done.deaf: return "hang"
    stopped = done.code == 130 and done.err.count("gradcheck: ") == 1 and "Traceback" not in done.err
    return "at work" if stopped or is_sentence(done) else "unforeseen"


def test_each_command_has_a_healthy_call():
    assert set(commands()) == set(BASES)


@pytest.mark.parametrize("name", BASES)
def test_options_at_their_edges(warm, world, tmp_path, name):
    stage, tally = tmp_path / "stage", Tally()
    own = dict(GRADCHECK_CACHE=str(stage / "cache"), TMPDIR=str(stage / "tmp"))
    for label, args in calls(name, commands()[name]):
        copied(world, ("d", "c", "pics", "results", "reference"), stage)
        for part in ("nbs", "settings.ini"): (stage / part).symlink_to(world / "checkout" / part)
        (stage / "tmp").mkdir()
        (stage / "afile").write_text("in the way", encoding="utf-8")
        done = warm(*args, cwd=stage, cpu=PATIENCE.get(name, 12.0), stop=True, **own)
        tally.add(name, label, word_for(done, (0, 1, 2) if name == "compare" else (0, 2)), done)
    written(tally, target(tmp_path) / f"options_{name}.csv")
    assert tally.bad(name) == []
