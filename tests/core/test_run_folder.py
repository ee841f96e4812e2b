"""Run folders: what a run is resumed with must be what it was begun with."""

import json
import os
import subprocess
import sys

import jax
import pytest

from jaxunlearn.core import configuration, records
from jaxunlearn.core.disk import DamagedError
from jaxunlearn.core.run_folder import RunFolder
from jaxunlearn.core.study import Where, begins, runner


def test_settings_of_earlier_runs_are_read_by_the_names_of_today():
    then = {"budget": 3, "estimates": {"alpha": 0.5, "members": 10}, "seed": 0}
    names = {"budget": "multiply_adds", "estimates.alpha": "estimates.subset_fraction", "x.y": "z"}
    now = {"multiply_adds": 3, "estimates": {"subset_fraction": 0.5, "members": 10}, "seed": 0}
    assert records.renamed(then, names) == now
    assert then["budget"] == 3
    assert records.renamed(now, names) == now


def test_a_folder_of_an_earlier_run_is_resumed_or_refused_by_name(tmp_path):
    RunFolder(tmp_path / "run", {"settings": {"budget": 3}}, {}, False).begin()
    names = {"budget": "multiply_adds"}
    now = {"settings": {"multiply_adds": 3}}
    assert RunFolder(tmp_path / "run", now, {}, True, names).path == tmp_path / "run"
    with pytest.raises(ValueError, match=r"settings.multiply_adds = 3, but now it is 4"):
        RunFolder(tmp_path / "run", {"settings": {"multiply_adds": 4}}, {}, True, names)
    with pytest.raises(ValueError, match=r"settings.budget = 3, but now it is None"):
        RunFolder(tmp_path / "run", now, {}, True)


def test_a_study_is_one_call_of_its_two_functions(tmp_path):
    from jaxunlearn.core import mesh
    from jaxunlearn.core.study import Job

    @begins
    def prepare(settings: int, where: Where, more: str = "") -> Job[int]:
        folder = RunFolder(where.out, {"settings": {"n": settings}}, {}, where.resume)
        return Job(settings, {"more": more}, folder, where.mesh or mesh.make({"models": 1}))

    def execute(job, progress):
        assert (job.folder.path / "settings.json").exists()
        progress("evaluation", 1, 1)
        return job.record | {"n": job.settings, "phases": job.phases}

    told = []
    run = runner(prepare, execute)
    results = run(3, "x", out=tmp_path / "run", progress=lambda *now: told.append(now))
    assert results == {"more": "x", "n": 3, "phases": {"evaluation": 1.0}}
    assert told == [("evaluation", 1, 1)]
    assert run(3, out=tmp_path / "run", resume=True)["more"] == ""
    with pytest.raises(ValueError, match="holds a run; resume it"):
        run(3, out=tmp_path / "run")


RECORD = {"settings": {"seed": 0}, "versions": {"jax": "1"}}


def begun(folder, resume=False, **methods):
    run = RunFolder(folder, RECORD, methods, resume)
    run.begin()
    return run


OPTIONS = {
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_enable_x64": True,
    "jax_default_matmul_precision": "bfloat16",
    "jax_random_seed_offset": 1,
    "jax_disable_jit": True,
}


@pytest.mark.parametrize("option", OPTIONS)
def test_a_run_goes_on_under_the_options_of_jax_that_it_began_with(tmp_path, option):
    begun(tmp_path / "run")
    before = getattr(jax.config, option)
    jax.config.update(option, OPTIONS[option])
    try:
        with pytest.raises(ValueError, match=f"run' has configuration.{option} = "):
            RunFolder(tmp_path / "run", RECORD, {}, True)
    finally:
        jax.config.update(option, before)
    RunFolder(tmp_path / "run", RECORD, {}, True)


def test_flags_that_decide_bits_must_be_the_same_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_b --xla_dump_to=/tmp/x")
    begun(tmp_path / "run")
    same = "--xla_force_host_platform_device_count=8 --xla_b --xla_a=2 --xla_a=1"
    monkeypatch.setenv("XLA_FLAGS", same)
    RunFolder(tmp_path / "run", RECORD, {}, True)
    for name, flags in (("XLA_FLAGS", "--xla_b"), ("LIBTPU_INIT_ARGS", "--xla_tpu_c=1")):
        monkeypatch.setenv(name, flags)
        with pytest.raises(ValueError, match=f"has configuration.{name}.xla_"):
            RunFolder(tmp_path / "run", RECORD, {}, True)
        monkeypatch.setenv(name, same if name == "XLA_FLAGS" else "")


def test_flags_in_a_file_decide_bits_too(tmp_path, monkeypatch):
    jax.devices()  # XLA has read its own flags from here on; unknown ones would end the process
    (tmp_path / "flags").write_text("--xla_a=1\n--xla_dump_to=/tmp/x\n")
    monkeypatch.setenv("XLA_FLAGS", str(tmp_path / "flags"))
    begun(tmp_path / "run")
    (tmp_path / "flags").write_text("--xla_a=2")
    with pytest.raises(ValueError, match="configuration.XLA_FLAGS.xla_a = '1', but now it is '2'"):
        RunFolder(tmp_path / "run", RECORD, {}, True)
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    RunFolder(tmp_path / "run", RECORD, {}, True)
    monkeypatch.setenv("XLA_FLAGS", str(tmp_path / "none"))
    assert configuration.current()["XLA_FLAGS"] == {str(tmp_path / "none"): ""}


def test_a_folder_of_an_earlier_version_says_nothing_of_the_configuration(tmp_path):
    (tmp_path / "run").mkdir()
    records.write(tmp_path / "run" / "settings.json", RECORD)
    begun(tmp_path / "run", resume=True)
    content = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert content == RECORD
    assert json.loads(json.dumps(configuration.current())) == configuration.current()


def test_damage_to_a_record_is_named(tmp_path):
    run = begun(tmp_path / "run")
    run.method_lanes("scrub", {"rate": 0.1}).write(0, {"x": 1.0})
    methods = {"scrub": {"rate": 0.1}}
    RunFolder(tmp_path / "run", RECORD, methods, True)
    for name in ("settings.json", "lanes/methods/scrub/settings.json"):
        file = tmp_path / "run" / name
        whole = file.read_bytes()
        for at in range(0, len(whole), 5):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 2]) + whole[at + 1 :])
            with pytest.raises(DamagedError, match=f"{name} is damaged"):
                RunFolder(tmp_path / "run", RECORD, methods, True)
        file.write_bytes(whole)


NO_TIMES = ("NaN", "Infinity", "-1", "true", "1" + 400 * "0", "1e999", '"1"')


@pytest.mark.parametrize(
    "content",
    [b"", b"\0\0", b"[]", b'{"full": 3}', b'{"full": {"run": 1}}']
    + [b'{"full": {"compile": 1.0, "run": %s}}' % text.encode() for text in NO_TIMES],
    ids=range(12),
)
def test_damaged_times_and_leftovers_do_not_block_a_run(tmp_path, content, capsys):
    run = begun(tmp_path / "run")
    run.add_seconds("full", "run", 2.0)
    assert RunFolder(tmp_path / "run", RECORD, {}, True).seconds == run.seconds
    (tmp_path / "run" / "seconds.json").write_bytes(content)
    (tmp_path / "run" / ".results.json.4711").write_bytes(b"half")
    again = begun(tmp_path / "run", resume=True)
    assert again.seconds == {} and "seconds.json is damaged" in capsys.readouterr().err
    again.add_seconds("full", "run", 1.0)
    assert again.seconds == {"full": {"compile": 0.0, "run": 1.0}}
    assert sorted(os.listdir(tmp_path / "run")) == ["seconds.json", "settings.json"]


def test_a_second_process_is_refused(tmp_path):
    code = (
        "import sys; from jaxunlearn.core.run_folder import RunFolder\n"
        f"RunFolder(sys.argv[1], {RECORD!r}, {{}}, True).begin()"
    )

    def elsewhere():
        command = [sys.executable, "-c", code, tmp_path / "run"]
        return subprocess.run(command, capture_output=True, text=True).stderr

    run = begun(tmp_path / "run")
    assert "run'; wait for it" in elsewhere()
    begun(tmp_path / "run", resume=True)  # this one may
    run.end()
    assert "Error" not in elsewhere()


def test_a_run_that_another_process_has_just_begun_is_not_begun_again(tmp_path):
    first, second = (RunFolder(tmp_path / "run", RECORD, {}, False) for _ in range(2))
    first.begin()
    first.end()
    with pytest.raises(ValueError, match="where another process has just begun a run"):
        second.begin()


def test_a_run_folder_with_links_is_refused_before_anything_is_written(tmp_path):
    begun(tmp_path / "run")
    (tmp_path / "outside").mkdir()
    (tmp_path / "run" / "lanes").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="lanes is a link"):
        RunFolder(tmp_path / "run", RECORD, {}, True)
    assert not os.listdir(tmp_path / "outside")
