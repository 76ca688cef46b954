"""At least 600 damaged or odd files, of every kind that is read: each is read as it was meant, or refused in a
sentence; nothing is wrong in silence, nothing hangs, nothing eats the machine."""
import fixtures
import pytest
from damage import remove
from kinds import KINDS, result_of
from verdicts import Tally, target, verdict, written
from worlds import copied

pytestmark = pytest.mark.slow
warm = fixtures.warm
world = fixtures.world
PATIENCE = 10                                              # seconds of work beyond what the healthy call takes
FEWEST = 600


def begun(kind, world, stage):
    "A fresh stage of a kind; what is called a checkout becomes the stage itself, with results of older calls."
    copied(world, [p for p in kind.parts if p != "checkout"], stage)
    if "checkout" in kind.parts:
        copied(world / "checkout", ["nbs", "settings.ini"], stage)
        copied(world, ["results"], stage / "results.old")
        (stage / "results").mkdir()
        (stage / "results.old" / "results").rename(stage / "results" / "smoke")
        (stage / "results.old").rmdir()
    (stage / "tmp").mkdir()


def called(warm, kind, stage, cpu=60.0, args=()):
    "The command of a kind on what lies on the stage: how it ended, and the digest of its result."
    own = dict(GRADCHECK_CACHE=str(stage / "cache"), TMPDIR=str(stage / "tmp"))
    done = warm(*kind.args, *args, cwd=stage, cpu=cpu, **own)
    return done, result_of(kind, done, stage)


def tried(warm, world, name, kind, stage, tally):
    "All cases of a kind, each on a fresh stage; False where this version cannot do what is healthy."
    begun(kind, world, stage)
    healthy, usual = called(warm, kind, stage)
    if healthy.code not in kind.codes or healthy.code == 2: return False
    source = world
    if kind.again:
        source = stage.with_name(stage.name + "_after")
        stage.rename(source)
    for case in kind.cases(source):
        if kind.again: copied(source, [p.name for p in source.iterdir() if p.name != "out"], stage)
        else: begun(kind, world, stage)
        case.spoil(stage)
        done, result = called(warm, kind, stage, healthy.cpu + PATIENCE, case.args)
        expected = usual
        if kind.fresh:
            for folder in ("out", "cache"): remove(stage / folder)
            expected = called(warm, kind, stage, healthy.cpu + PATIENCE, case.args)[1]
        tally.add(name, case.name, verdict(done, result, expected, case.legal, case.named, kind.codes), done)
    return True


@pytest.mark.parametrize("name", KINDS)
def test_no_damage_is_met_by_a_traceback_or_in_silence(warm, world, tmp_path, name):
    tally = Tally()
    assert tried(warm, world, name, KINDS[name], tmp_path / "stage", tally), "the healthy call fails"
    written(tally, target(tmp_path) / f"files_{name.replace(', ', '_').replace(' ', '_')}.csv")
    assert tally.counts, "no file of this kind was damaged"
    assert tally.bad(name) == []


def test_there_are_enough_cases(world):
    counted = sum(len(list(kind.cases(world))) for kind in KINDS.values() if not kind.again)
    assert counted >= FEWEST
