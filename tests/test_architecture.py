"""Who may import whom, and what an import costs."""

import ast
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent / "jaxunlearn"
FLOORS = [
    {"__main__"},
    {"cli"},
    {"_exact_verb", "_compact_verb"},
    {"_console"},
    {"plots"},
    {"unlearn", "compact"},
    {"attribution", "evaluate"},
    {"nn", "data", "theory"},
    {"core"},
    {"__init__"},
]
LEVEL = {name: level for level, floor in enumerate(FLOORS) for name in floor}
HEAVY = {"orbax", "tensorflow", "tensorflow_datasets", "torch", "matplotlib", "sklearn", "grain"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def test_imports_go_down_and_siblings_do_not_know_each_other():
    wrong = []
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        for name, _ in imports(path):
            if not name.startswith("jaxunlearn."):
                continue
            target = name.split(".")[1]
            target = target if target in LEVEL else "__init__"
            if target != parts[0] and LEVEL[target] <= LEVEL[parts[0]]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, wrong


def test_experiments_and_benchmarks_do_not_use_the_command_line():
    for folder in ("experiments", "benchmarks"):
        for path in (ROOT.parent / folder).rglob("*.py"):
            assert not [name for name, _ in imports(path) if name.startswith("jaxunlearn.cli")]


def test_heavy_packages_are_imported_where_they_are_used():
    wrong = []
    owners: dict[str, set] = {}
    for path in ROOT.rglob("*.py"):
        module = ast.parse(path.read_text())
        top = {(node.lineno, node.col_offset) for node in module.body}
        for name, node in imports(path):
            package = name.split(".")[0]
            if package in HEAVY:
                owners.setdefault(package, set()).add(path.name)
                if (node.lineno, node.col_offset) in top:
                    wrong.append(f"{path.name} imports {name} at its top")
    assert not wrong, wrong
    assert all(len(files) == 1 for files in owners.values()), owners


def test_importing_the_package_is_light():
    code = (
        "import sys, json, jaxunlearn; print(json.dumps([m for m in sys.modules if '.' not in m]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert not loaded & (HEAVY | {"jax", "flax", "numpy"})
    code = "import sys, jaxunlearn; jaxunlearn.unlearn; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {m.split(".")[0] for m in done.stdout.split()} & HEAVY


def test_sub_packages_load_on_first_use():
    import jaxunlearn

    assert jaxunlearn.core.tree.size({"a": 1.0}) == 1
    assert callable(jaxunlearn.evaluate.klom)
    assert {"core", "unlearn", "evaluate"} <= set(dir(jaxunlearn))
