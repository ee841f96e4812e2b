"""Records: a changed bit anywhere is named, and what earlier versions wrote is read."""

import json

import pytest

from jaxunlearn.core import records
from jaxunlearn.core.disk import DamagedError

CONTENT = {"settings": {"n": 3, "rate": 0.1, "name": "é", "none": None}, "versions": {"jax": "1"}}


def test_any_flipped_bit_of_a_record_is_named(tmp_path):
    path = tmp_path / "record.json"
    records.write_signed(path, CONTENT)
    assert records.read_signed(path) == CONTENT
    assert json.loads(path.read_text()).keys() == {*CONTENT, "sha256"}
    whole = path.read_bytes()
    for at in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            with pytest.raises(DamagedError, match="record.json is damaged"):
                records.read_signed(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"7", b'"x"', b"\xff", b"[" * 100_000, b"{"])
def test_what_is_no_record_is_named(tmp_path, content):
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(DamagedError, match="record.json is damaged"):
        records.read_signed(tmp_path / "record.json")


def test_records_of_earlier_versions_have_no_checksum(tmp_path):
    records.write(tmp_path / "record.json", CONTENT)
    assert records.read_signed(tmp_path / "record.json") == CONTENT
    records.write(tmp_path / "record.json", {})
    assert records.read_signed(tmp_path / "record.json") == {}
    assert records.renamed({"a": 3}, {"a.b": "c"}) == {"a": 3}
