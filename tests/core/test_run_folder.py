"""Run folders: what a run is resumed with must be what it was begun with."""

import pytest

from jaxunlearn.core import records
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
