"""Folders of one run: nothing in them leads out, and one process has them at a time."""

import gc
import os
import subprocess
import sys

import pytest

from jaxunlearn.core import disk, folders

HOLD = "import sys; from jaxunlearn.core import folders; folders.hold(sys.argv[1], 'busy')"


def hold_elsewhere(folder):
    return subprocess.run([sys.executable, "-c", HOLD, folder], capture_output=True, text=True)


@pytest.mark.parametrize("kind", ["file", "folder", "dangling", "pipe"])
@pytest.mark.parametrize("place", [".", "lanes/full"])
def test_what_leads_out_of_a_folder_is_named(tmp_path, kind, place):
    inside, outside = tmp_path / "run" / place, tmp_path / "outside"
    inside.mkdir(parents=True)
    outside.mkdir()
    (inside / "00000.npz").write_bytes(b"mine")
    (outside / "file").write_bytes(b"")
    folders.check_own(tmp_path / "run")
    if kind == "pipe":
        os.mkfifo(inside / "x")
    else:
        where = {"file": outside / "file", "folder": outside, "dangling": outside / "none"}
        (inside / "x").symlink_to(where[kind])
    with pytest.raises(ValueError, match=r"x is (a link; put|neither a file nor a folder)"):
        folders.check_own(tmp_path / "run")


def test_the_folder_itself_may_be_a_link_or_missing(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "latest").symlink_to("real")
    folders.check_own(tmp_path / "latest")
    folders.check_own(tmp_path / "none")


def test_a_folder_is_held_by_one_process(tmp_path):
    first = folders.hold(tmp_path, "busy")
    again = folders.hold(tmp_path, "busy")  # this process may
    del first
    gc.collect()
    refused = hold_elsewhere(tmp_path)
    assert "ValueError: busy; wait for it" in refused.stderr
    del again
    gc.collect()
    assert hold_elsewhere(tmp_path).returncode == 0
    assert not os.listdir(tmp_path)


def test_only_what_killed_writers_left_is_swept(tmp_path):
    kept = (".hidden", ".zarray", ".a.json.new", "a.1", ".folder.17")
    for name in kept[:-1]:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / ".folder.17").mkdir()
    (tmp_path / "lanes").mkdir()
    for file in (tmp_path / ".results.json.4711", tmp_path / "lanes" / ".00000.npz.1"):
        file.write_bytes(b"half")
    folders.sweep(tmp_path)
    assert {file.name for file in tmp_path.rglob("*")} == {*kept, "lanes"}


def test_files_are_written_beside_links_and_never_through_them(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / f".x.{os.getpid()}").symlink_to("victim")  # where the new file is made
    (tmp_path / "x").symlink_to("victim")
    with disk.replacing(tmp_path / "x") as file:
        file.write(b"ours")
    os.link(tmp_path / "victim", tmp_path / "other")
    disk.alone(tmp_path / "other")
    with (tmp_path / "other").open("r+") as file:
        file.write("ours")
    assert (tmp_path / "victim").read_text() == "mine"
    assert (tmp_path / "x").read_text() == (tmp_path / "other").read_text() == "ours"


def test_room_is_taken_or_refused_at_once(tmp_path, monkeypatch):
    with disk.replacing(tmp_path / "x") as file:
        file.write(b"head")
        disk.allocate(file, 100_000)
    stat = (tmp_path / "x").stat()
    assert stat.st_size == 100_000 and stat.st_blocks * 512 >= 100_000
    too_much = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize + (1 << 40)
    with pytest.raises(OSError, match="y'"), disk.replacing(tmp_path / "y") as file:
        disk.allocate(file, too_much)
    monkeypatch.delattr(os, "posix_fallocate")
    with disk.replacing(tmp_path / "z") as file:
        file.write(b"head")
        disk.allocate(file, 100_000)
    assert (tmp_path / "z").read_bytes() == b"head" + bytes(99_996)
    assert sorted(os.listdir(tmp_path)) == ["x", "z"]
