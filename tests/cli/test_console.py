"""Where results go, and how a verb ends: devices, links, readers that go away, Ctrl-C."""

import io
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest
from rich.table import Table

from jaxunlearn.cli import app, console
from jaxunlearn.core.streams import Stream, printable
from jaxunlearn.data._notices import notice

ESCAPES = "\x1b]0;title\x07\x1b[31mred\x9b2J\u202eback\r\x7f"


def written(path, content):
    console.check_json(path)
    console.write_json(path, content)


def test_a_file_is_replaced_at_once(tmp_path):
    (tmp_path / "x.json").write_text("old")
    written(tmp_path / "x.json", {"a": 1})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def test_what_killed_processes_left_of_a_file_goes_with_the_next(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    kept = (f".x.json.{os.getppid()}", f".y.json.{ended.pid}", f"x.json.{ended.pid}", ".x.json.old")
    for name in (f".x.json.{ended.pid}", f".x.json.{'9' * 30}", *kept):
        (tmp_path / name).write_text("half")
    written(tmp_path / "x.json", [1])
    assert sorted(os.listdir(tmp_path)) == sorted((*kept, "x.json"))


def test_what_is_no_regular_file_is_written_to_as_it_is(tmp_path):
    kept = tmp_path / "kept.json"
    kept.write_text("a longer text than what follows")
    (tmp_path / "link").symlink_to("kept.json")
    (tmp_path / "dangling").symlink_to("new.json")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "dangling"):
        written(tmp_path / name, [1])
        assert (tmp_path / name).is_symlink()
    assert json.loads(kept.read_text()) == json.loads((tmp_path / "new.json").read_text()) == [1]
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    written(tmp_path / "pipe", b"[2]")
    reader.join()
    assert read == [b"[2]"] and (tmp_path / "pipe").is_fifo()
    written(tmp_path / "kept.json", [3])
    assert (tmp_path / "link").is_symlink() and json.loads((tmp_path / "link").read_text()) == [3]


def device(path, minor):
    """A device like /dev/null (3) or /dev/full (7): the system's own are no place to try this."""
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        path.open("wb").close()
    except PermissionError:  # only root makes devices, and not in every container
        pytest.skip("devices can be made by root only")
    return path


def test_a_device_stays_one(tmp_path):
    null = device(tmp_path / "null", 3)
    written(null, [1])
    assert null.is_char_device() and os.listdir(tmp_path) == ["null"]
    with pytest.raises(OSError, match="full'"):
        written(device(tmp_path / "full", 7), [1])


WRITE = """
import sys, pathlib
from jaxunlearn.cli import console
print("before")
path = pathlib.Path(sys.argv[1])
console.check_json(path)
console.write_json(path, b"[1]\\n")
print("after")
"""


@pytest.mark.parametrize("name", ["stdout", "/proc/self/fd/1", "out"])
def test_standard_output_by_its_names_keeps_what_is_there(tmp_path, name):
    """Also where it leads to a file, which opened by name would begin anew."""
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")  # as /dev/stdout
    with (tmp_path / "out").open("w") as out:
        command = [sys.executable, "-c", WRITE, name]
        subprocess.run(command, stdout=out, cwd=tmp_path, check=True)
    assert (tmp_path / "out").read_text() == "before\n[1]\nafter\n"


def test_what_cannot_be_written_is_named(tmp_path):
    import socket

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for bad in (tmp_path, tmp_path / "none" / "x.json", tmp_path / "socket"):
            with pytest.raises(ValueError, match=f"json is '{bad}'; a file in a folder"):
                console.check_json(bad)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        written(tmp_path / "loop", [1])


def test_nothing_in_a_store_or_a_run_folder_is_replaced(tmp_path):
    run, store, plain = (tmp_path / name for name in ("run", "store", "plain"))
    for folder in (run / "lanes", store / "orders", plain):
        folder.mkdir(parents=True)
    (run / "settings.json").write_text(json.dumps({"settings": {}, "versions": {}}))
    (run / "lanes" / "00000.npz").write_text("")
    (run / "mine.json").write_text("")
    for name in ("plan.json", "ledger.jsonl", "orders/00000.npz"):
        (store / name).write_text("")
    (plain / "settings.json").write_text('{"editor.fontSize": 12}')  # of another program
    (tmp_path / "link.json").symlink_to(store / "ledger.jsonl")
    refused = [
        *(run / name for name in ("settings.json", "results.json", "seconds.json", "mine.json")),
        *(run / name for name in ("lanes/00000.npz", "lanes/new.json", "figure.png")),
        *(store / name for name in ("ledger.jsonl", "plan.json", "orders/00000.npz", "new.json")),
        tmp_path / "link.json",
        plain / ".." / "run" / "mine.json",
    ]
    for path in refused:
        with pytest.raises(ValueError, match="in the (store|folder of a run)"):
            console.check_json(path)
    console.check_json(run / "new.json")
    console.check_json(plain / "settings.json")
    new = tmp_path / "new"  # a run that has not begun
    console.check_json(new / "summary.json", made=new)
    for name in ("settings.json", "results.json", "figure.png"):
        with pytest.raises(ValueError, match="in the folder of a run"):
            console.check_json(new / name, made=new)


def test_escape_sequences_in_texts_never_reach_a_terminal(capsys):
    for text in (printable(ESCAPES), printable("\x00\x1b\x9f")):
        assert not set(text) & {*map(chr, range(32)), *map(chr, range(0x7F, 0xA0)), "\u202e"}
    assert printable("a\tb\ncé猫") == "a\tb\ncé猫"
    out = io.StringIO()
    terminal = console.printer()
    terminal.file, terminal._force_terminal = out, True
    table = Table("name", title=ESCAPES)
    table.add_row(f"[link=http://x]{ESCAPES}[/link][/nonsense]")
    for shown in (ESCAPES, f"[red]{ESCAPES}[/wrong]", table):
        terminal.print(shown)
    assert "\x1b]" not in out.getvalue() and "\x9b" not in out.getvalue()
    assert "\x1b[31mred" not in out.getvalue() and "[/nons" in out.getvalue()
    console.error(f"class {ESCAPES} is unknown")
    assert "\x1b" not in capsys.readouterr().err


def test_every_text_can_be_written_and_readers_may_go_away():
    source, sink = os.pipe()
    with os.fdopen(sink, "w", encoding="ascii") as file:
        stream = Stream(file)
        stream.write("café \udcff\n")
        stream.flush()
        assert os.read(source, 100) == rb"caf\xe9 \udcff" + b"\n"
        os.close(source)
        for _ in range(3):
            stream.write("x" * 100_000)
            stream.flush()


@pytest.mark.parametrize(
    ("arguments", "closed"),
    [
        (["--help"], "pipe"),
        (["--help"], "both"),
        (["unlearn", "--help"], "pipe"),
        (["exact", "plan"], "pipe"),
        pytest.param(["exact", "plan"], "stdout", marks=pytest.mark.slow),
        pytest.param(["exact", "plan"], "both", marks=pytest.mark.slow),
    ],
)
def test_a_closed_output_is_no_traceback(tmp_path, arguments, closed):
    source, sink = os.pipe()
    os.close(source)
    close = {"pipe": "", "stdout": ">&-", "both": ">&- 2>&-"}[closed]
    command = f'exec "$@" {close}'
    if arguments[0] == "exact":
        arguments = [*arguments, "--json", "x.json"]
    program = ["bash", "-c", command, "bash", sys.executable, "-m", "jaxunlearn", *arguments]
    done = subprocess.run(
        program, stdout=sink, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False
    )
    os.close(sink)
    assert (done.returncode, done.stderr) == (0, "")
    if arguments[0] == "exact":
        assert len(json.loads((tmp_path / "x.json").read_text())) == 3


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], [], ["unlearn", "--help"]])
def test_a_full_output_is_named_and_no_traceback(tmp_path, arguments, buffered):
    device(tmp_path / "full", 7)
    unbuffered = {} if buffered else {"PYTHONUNBUFFERED": "1"}
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    program = [sys.executable, "-m", "jaxunlearn", *arguments]
    with (tmp_path / "full").open("wb") as full:
        run = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, env=kept | unbuffered)
        assert run.returncode == console.FAILED
        assert b"No space left" in run.stderr and b"Traceback" not in run.stderr
        assert b"Exception ignored" not in run.stderr
        lost = subprocess.run([*program[:3], "nothing"], stdout=full, stderr=full)
        assert lost.returncode == console.USAGE  # what is said beside the results may be lost


def test_results_that_cannot_be_written_are_no_success(tmp_path, monkeypatch, capsys):
    device(tmp_path / "full", 7)
    with (tmp_path / "full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        shown = console.guarded(lambda: console.printer().print("a table"), "again")
        flushed = console.guarded(sys.stdout.flush, "again")  # what is left goes nowhere
        monkeypatch.undo()
        assert (shown, flushed) == (console.USAGE, console.OK)
    assert f"No space left on device: '{tmp_path / 'full'}'" in capsys.readouterr().err
    with (tmp_path / "full").open("w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        console.notices().print("a bar")
        console.tell("a notice")
        notice(f"decoding {ESCAPES}")
        monkeypatch.undo()
    notice(f"decoding {ESCAPES}")
    assert "\x1b" not in capsys.readouterr().err


def test_ctrl_c_before_a_verb_begins_is_130(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(app.importlib, "import_module", interrupted)
    assert app.main(["unlearn", "--out", "my run"]) == app.INTERRUPTED
    err = capsys.readouterr().err
    assert "interrupted before" in err and "jaxunlearn unlearn --out 'my run'" in err


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 0.6, 1.0, 1.5, 2.0, 2.5, 3.0])
def test_ctrl_c_at_any_time_is_130_and_the_run_goes_on(tmp_path, seconds):
    tiny = ["--n-train", "200", "--n-models", "2", "--methods", "none", "--out", "run"]
    tiny += ["--training.epochs", "1", "--forget-size", "8", "--training.batch-size", "40"]
    command = [sys.executable, "-m", "jaxunlearn", "unlearn", *tiny]
    # A shell's background jobs ignore Ctrl-C, and with them what they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err
    done = subprocess.run([*command, "--resume"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "results.json").exists()
