"""Files that a reader cannot trust: a chunk is computed again, a record is refused in a sentence, never in silence."""
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from gradcheck.core import UserError
from gradcheck.paper.settings import spec_for
from gradcheck.base import read_json
from gradcheck.runs.records import HERE, matched, read_claims, read_numbers, read_sidecar
from gradcheck.runs.runs import chunk_path, chunks_of, read_chunk, write_chunk

SPEC = spec_for("smoke", "nonrobust", "plain", count=2)


# --- chunks -----------------------------------------------------------------------------------
def with_header(header):
    "A safetensors file of a header (bytes) and no more."
    return struct.pack("<Q", len(header)) + header + b"\0" * 64


def with_meta(meta):
    "One with an empty tensor and `meta` (text) where gradcheck keeps its own words."
    tensor = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({"__metadata__": {"gradcheck": meta}, "samples": tensor}).encode()
    return struct.pack("<Q", len(header)) + header


NESTED = "[" * 100_000 + "]" * 100_000
CHUNKS = {
    "of zero bytes": b"",
    "shorter than a number": b"\1\2\3",
    "no JSON": with_header(b"not JSON"),
    "a list": with_header(b"[]"),
    "nested": with_header(NESTED.encode()),
    "a length beyond the file": struct.pack("<Q", 2**63) + b"{}",
    "shapes that overflow": with_header(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}'),
    "a negative shape": with_header(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}'),
    "another type": with_header(b'{"a":{"dtype":"Q7","shape":[1],"data_offsets":[0,4]}}'),
    "offsets that run back": with_header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}}'),
    "words that are nested": with_meta(NESTED),
    "words that are no JSON": with_meta("{"),
    "words that are a list": with_meta("[]"),
    "words that are null": with_meta("null"),
    "words that are a number": with_meta("5"),
    "no words": with_meta("{}"),
    "words of other types": with_meta(json.dumps(dict(key=[SPEC.key], images={}, content=None))),
    "words of another format": with_meta(json.dumps(dict(key=SPEC.key, images="000000-000002", format=99))),
}


@pytest.fixture
def path(tmp_path):
    path = chunk_path(SPEC, chunks_of(SPEC, 2)[0], tmp_path)
    write_chunk(path, {"samples": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)}, SPEC)
    return path


@pytest.mark.parametrize("name", CHUNKS)
def test_a_chunk_that_cannot_be_trusted_is_computed_again_and_named(path, name):
    assert read_chunk(path, SPEC) is not None
    path.write_bytes(CHUNKS[name])
    with pytest.warns(UserWarning, match="damaged or foreign; it is computed again"):
        assert read_chunk(path, SPEC) is None


@pytest.mark.filterwarnings("ignore:cache file")
def test_a_flipped_bit_and_a_cut_never_give_other_tensors(path):
    whole, tensors = path.read_bytes(), read_chunk(path, SPEC)
    for k in np.random.default_rng(0).integers(0, len(whole), 60):
        path.write_bytes(whole[:k])
        assert read_chunk(path, SPEC) is None
        path.write_bytes(whole[:k] + bytes([whole[k] ^ 1]) + whole[k + 1:])
        read = read_chunk(path, SPEC)                                   # what the header says for people may differ
        assert read is None or (read.keys() == tensors.keys() and torch.equal(read["samples"], tensors["samples"]))


def test_a_chunk_of_another_setting_under_this_ones_name(path):
    other = replace(SPEC, seed=1)
    write_chunk(path, {"samples": torch.ones(2, 3, 4, 4, dtype=torch.uint8)}, other)
    with pytest.warns(UserWarning, match="damaged or foreign"): assert read_chunk(path, SPEC) is None


# --- what lies beside a figure ----------------------------------------------------------------
RECORDS = {
    "zero bytes": b"",
    "no JSON": b"not JSON",
    "a list": b"[]",
    "null": b"null",
    "a number": b"5",
    "nested": b'{"a":' + NESTED.encode() + b"}",
    "half": b'{"figure": "figure_1", "capt',
    "no UTF-8": b"\xff\xfe\0{",
    "a number of many digits": b'{"a": ' + b"9" * 100_000 + b"}",
}


@pytest.mark.parametrize("content", RECORDS.values(), ids=list(RECORDS))
@pytest.mark.parametrize("name", ["figure_1.json", "figure_1.csv", "claims.csv"])
def test_a_record_that_is_none_is_refused_in_a_sentence(tmp_path, name, content):
    file = tmp_path / name
    file.write_bytes(content)
    read = read_sidecar if name.endswith("json") else read_claims if name == "claims.csv" else read_numbers
    with pytest.raises(UserError) as told: read(file)
    assert str(file) in str(told.value) and str(told.value).endswith(f"make {file.stem} again.")
    assert "\n" not in str(told.value) and len(str(told.value)) < 400


@pytest.mark.parametrize("read", [read_numbers, read_claims, read_sidecar])
def test_a_record_that_is_missing_a_folder_or_huge(tmp_path, read):
    file = tmp_path / "figure_1.csv"
    with pytest.raises(UserError, match="is missing; make figure_1 again"): read(file)
    with open(file, "wb") as sparse: sparse.truncate(10**12)
    with pytest.raises(UserError, match="too large.*; make figure_1 again"): read(file)
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match="; make figure_1 again"): read(file)


def test_what_to_do_is_the_readers_to_say(tmp_path):
    (tmp_path / "a.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match="^the reference .*; restore it.$"):
        read_json(tmp_path / "a.json", "the reference", "restore it")


@pytest.mark.parametrize("wrong", [dict(effect="a word"), dict(low="1,5"), dict(verdict="perhaps")])
def test_a_claim_has_numbers_or_nothing_and_a_verdict(tmp_path, wrong):
    row = dict(claim="a", effect="", low="", high="", verdict="undecided")
    pd.DataFrame([row, row | dict(effect=0.1, low=0, high=0.2)]).to_csv(tmp_path / "claims.csv", index=False)
    assert read_claims(tmp_path / "claims.csv")["claim"].tolist() == ["a", "a"]
    pd.DataFrame([row, row | wrong]).to_csv(tmp_path / "claims.csv", index=False)
    with pytest.raises(UserError, match="is torn; make claims again"): read_claims(tmp_path / "claims.csv")


LAPTOP = Path(__file__).parents[2] / "data" / "reference" / "laptop"


@pytest.mark.parametrize("path", sorted(LAPTOP.glob("*.csv")), ids=lambda path: path.stem)
def test_rows_of_each_reference_are_told_apart_and_held_against_themselves(path):
    table = read_numbers(path)
    both, columns = matched(table, table, path)
    assert len(both) == len(table) and columns
    assert all(both[c].equals(both[c + HERE].rename(c)) for c in columns)
