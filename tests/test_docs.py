"""Everything public is documented, is on the API pages, and READMEs name what there is."""

import ast
import importlib
import inspect
import re
import shlex
from pathlib import Path

import pytest

import jaxunlearn
from jaxunlearn.cli import adapt, attribute, compact, compare, exact_verbs, paths, study, unlearn

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jaxunlearn"
MANUALS = sorted(PACKAGE.glob("*/README.md"))
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def is_public(name):
    return not any(part.startswith("_") for part in name.split("."))


def public_definitions(tree, name):
    """(full name, node) of a module's public classes, functions and methods."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and is_public(node.name):
            yield f"{name}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node, f"{name}.{node.name}")


def handed_out(name):
    """The names that a package hands out, from its private files too."""
    package = importlib.import_module(name.rpartition(".")[0])
    return getattr(package, "__all__", ())


@pytest.mark.parametrize("package", sorted(p.parent.name for p in PACKAGE.glob("*/__init__.py")))
def test_everything_public_has_a_docstring(package):
    missing = []
    for name, path in MODULES.items():
        if not f"{name}.".startswith(f"jaxunlearn.{package}."):
            continue
        tree = ast.parse(path.read_text())
        named = [(name, tree), *public_definitions(tree, name)]
        if not is_public(name):  # of a private file, what its package hands out
            outer = [f"{name}.{out}" for out in handed_out(name)]
            named = [(n, node) for n, node in named if n.startswith(tuple(outer))]
        missing += [full for full, node in named if not ast.get_docstring(node)]
    assert not missing


def reached(module):
    """The public modules that the API pages show, beginning at one of them."""
    yield module.__name__
    inside = getattr(module, "__all__", None)
    if not hasattr(module, "__path__"):
        return
    for name in MODULES:
        parent, _, own = name.rpartition(".")
        if parent == module.__name__ and is_public(own) and (inside is None or own in inside):
            yield from reached(importlib.import_module(name))


def test_every_public_module_has_a_page():
    shown = set(reached(jaxunlearn))
    # The command line has its help; lowerings for a CPU are nobody's business outside of `nn`.
    others = ("jaxunlearn.cli", "jaxunlearn.nn.cpu", "jaxunlearn.lazy")
    assert not [n for n in MODULES if is_public(n) and n not in shown and not n.startswith(others)]


@pytest.mark.parametrize("manual", MANUALS, ids=lambda p: p.parent.name)
def test_a_manual_is_part_of_its_package(manual):
    doc = inspect.getdoc(importlib.import_module(f"jaxunlearn.{manual.parent.name}")) or ""
    assert doc.rstrip().endswith(".. include:: README.md")
    assert re.match(r".+[.]$", doc.splitlines()[0])


@pytest.mark.parametrize(
    "readme", [ROOT / "README.md", *MANUALS], ids=lambda p: str(p.relative_to(ROOT))
)
def test_names_in_readmes_exist(readme):
    text = re.sub(r"```.*?```", "", readme.read_text(), flags=re.DOTALL)
    packages = "|".join(p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists())
    near = f"jaxunlearn.{readme.parent.name}" if readme.parent.parent == PACKAGE else ""
    for written in re.findall(r"`([A-Za-z_][\w.]*)(?:\(.*?\))?`", text):
        name = written.removeprefix("jaxunlearn.")
        if re.fullmatch(rf"(?:{packages})\.[\w.]+", name) and not name.endswith(SUFFIXES):
            assert resolves(f"jaxunlearn.{name}"), written
        elif near and "." in name and not name.endswith(SUFFIXES):
            first = f"{near}.{name.split('.')[0]}"
            if resolves(first):
                assert resolves(f"{near}.{name}"), written


SUFFIXES = (".py", ".json", ".npz", ".png", ".md", ".jsonl", ".txt", ".safetensors", ".stablehlo")


def resolves(name):
    """Whether a full name is a module, or something in one, or a field of a class."""
    parts = name.split(".")
    module = jaxunlearn
    for i, part in enumerate(parts[1:], 1):
        if not hasattr(module, part):
            if ".".join(parts[: i + 1]) in MODULES:
                module = importlib.import_module(".".join(parts[: i + 1]))
                continue
            return part in getattr(module, "__annotations__", {})
        module = getattr(module, part)
    return True


def commands(readme):
    """The commands of `jaxunlearn` in a README, as lists of words."""
    for block in re.findall(r"```bash\n(.*?)```", readme.read_text(), flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            start = re.search(r"(?:^|python -m )jaxunlearn ", line.replace('"', "'"))
            if start:
                words = shlex.split(line[start.end() :].rstrip('"'), comments=True)
                yield words[: words.index("&&")] if "&&" in words else words


@pytest.mark.parametrize(
    "readme", [ROOT / "README.md", *MANUALS], ids=lambda p: str(p.relative_to(ROOT))
)
def test_commands_in_readmes_are_understood(readme):
    for verb, *argv in commands(readme):
        if verb == "exact":
            exact_verbs.parse(argv[0], argv[1:])
        elif [verb, *argv[:1]] == ["compact", "predict"]:
            study.parse(compact.Predict, "compact predict", argv[1:])
        else:
            options = {
                "unlearn": unlearn.Unlearn,
                "attribute": attribute.Attribute,
                "paths": paths.Paths,
                "compact": compact.Compact,
                "compare": compare.Compare,
                "adapt": adapt.Adapt,
            }
            study.parse(options[verb], verb, argv)
