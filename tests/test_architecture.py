"""Who may import whom, how large things are, and what an import costs."""

import ast
import collections
import itertools
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent / "jaxunlearn"
FLOORS = [
    {"__main__"},
    {"cli"},
    {"compact", "comparison", "exact", "paths", "tta"},
    {"unlearn"},
    {"attribution", "evaluate"},
    {"nn", "data", "theory"},
    {"core"},
    {"lazy"},
    {"__init__"},
]
# Their tables and figures are those of the experiments, too.
VERBS = {
    f"jaxunlearn.cli.{verb}" for verb in ("attribute", "compact", "drawing", "paths", "unlearn")
}
LEVEL = {name: level for level, floor in enumerate(FLOORS) for name in floor}
HEAVY = {"orbax", "tensorflow", "tensorflow_datasets", "torch", "matplotlib", "sklearn", "grain"}
SOURCES = {path: ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in SOURCES
}


def imports(path):
    """(full name, node) of everything that a file imports; a name may be a module or in one."""
    tree = SOURCES.get(path) or ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def module_of(name):
    """The module that a full name is, or is in."""
    return name if name in MODULES else name.rpartition(".")[0]


def test_imports_go_down_and_siblings_do_not_know_each_other():
    wrong = []
    for path in SOURCES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        for name, _ in imports(path):
            if not name.startswith("jaxunlearn."):
                continue
            target = name.split(".")[1]
            target = target if target in LEVEL else "__init__"
            if parts[0] == "__init__" and target == "lazy":
                continue
            if target != parts[0] and LEVEL[target] <= LEVEL[parts[0]]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, wrong


def test_private_names_stay_in_their_package():
    wrong = []
    folders = [ROOT, *(ROOT.parent / name for name in ("benchmarks", "experiments"))]
    for path in itertools.chain.from_iterable(folder.rglob("*.py") for folder in folders):
        package = ".".join(path.relative_to(ROOT.parent).parts[:-1])
        for name, _ in imports(path):
            parts = name.split(".")
            if parts[0] == "jaxunlearn":
                private = [
                    i
                    for i, part in enumerate(parts)
                    if part.startswith("_") and not part.endswith("__")
                ]
                if private and ".".join(parts[: private[0]]) not in (package, *parents(package)):
                    wrong.append(f"{path.relative_to(ROOT.parent)} imports {name}")
    assert not wrong, wrong


def test_private_attributes_stay_in_their_module():
    wrong = []
    for path, module in SOURCES.items():
        names = {name.rpartition(".")[2]: name for name, _ in imports(path) if name in MODULES}
        for node in ast.walk(module):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                is_private = node.attr.startswith("_") and not node.attr.startswith("__")
                if is_private and node.value.id in names:
                    wrong.append(f"{path.relative_to(ROOT)}: {names[node.value.id]}.{node.attr}")
    assert not wrong, wrong


def test_benchmarks_leave_the_command_line_alone_and_experiments_only_draw_with_it():
    wrong = []
    for folder, allowed in (("benchmarks", set()), ("experiments", VERBS)):
        for path in (ROOT.parent / folder).rglob("*.py"):
            for name, _ in imports(path):
                if name.startswith("jaxunlearn.cli") and module_of(name) not in allowed:
                    wrong.append(f"{path.relative_to(ROOT.parent)} imports {name}")
    assert not wrong, wrong


def parents(package):
    """A file in `a.b` may read private files of `a.b` and of `a`, but not of the whole library."""
    parts = package.split(".")
    return [".".join(parts[:n]) for n in range(2, len(parts))]


def test_files_import_each_other_without_circles():
    # A package's `__init__` collects its files, and who imports a package means one of them.
    edges = collections.defaultdict(set)
    for module, path in MODULES.items():
        for name, _ in imports(path):
            target = module_of(name)
            if target in MODULES and target != module and path.name != "__init__.py":
                edges[module].add(target)
    done, open_ = set(), []

    def visit(module):
        assert module not in open_, " -> ".join([*open_[open_.index(module) :], module])
        if module not in done:
            open_.append(module)
            for target in sorted(edges[module]):
                visit(target)
            done.add(open_.pop())

    for module in MODULES:
        visit(module)


def test_no_public_file_bears_the_name_of_its_function():
    # Otherwise a package would hand out the module or the function, depending on who came first.
    pinned = {"jaxunlearn.nn.language.decoder"}
    for module, path in MODULES.items():
        names = {node.name for node in SOURCES[path].body if isinstance(node, ast.FunctionDef)}
        stem = path.stem
        assert stem.startswith("_") or stem not in names or module in pinned, module


def test_files_and_functions_fit_a_head():
    exceptions: dict[str, str] = {}  # "file:function": the reason why it is longer
    long = []
    for folder in ("jaxunlearn", "benchmarks", "experiments", "tests"):
        for path in sorted((ROOT.parent / folder).rglob("*.py")):
            text, name = path.read_text(), path.relative_to(ROOT.parent).as_posix()
            if len(text.splitlines()) > 450:
                long.append(name)
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    lines = (node.end_lineno or node.lineno) - node.lineno + 1
                    if lines > 60 and f"{name}:{node.name}" not in exceptions:
                        long.append(f"{name}:{node.name}")
    assert not long, long


def test_heavy_packages_are_imported_where_they_are_used():
    wrong = []
    owners: dict[str, set] = {}
    for path in SOURCES:
        top = {(node.lineno, node.col_offset) for node in SOURCES[path].body}
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
    code = "import sys, jaxunlearn; jaxunlearn.comparison; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {m.split(".")[0] for m in done.stdout.split()} & HEAVY


def test_modules_of_networks_are_imported_by_their_names_in_nn():
    code = "from jaxunlearn.nn.dual_cnn import build; import jaxunlearn.nn.decoder as d; d.decoder"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sub_packages_load_on_first_use():
    import jaxunlearn

    assert jaxunlearn.core.tree.size({"a": 1.0}) == 1
    assert callable(jaxunlearn.evaluate.klom)
    assert {"core", "unlearn", "evaluate"} <= set(dir(jaxunlearn))
