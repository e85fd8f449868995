"""What is imported is declared, and an installed package has what it reads."""

import ast
import re
import sys
import tomllib
from fnmatch import fnmatch
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from setuptools import find_namespace_packages

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OURS = {"dp", "workspaces", "hydra_plugins", "configs", "benchmarks"}
ELSEWHERE = ROOT / "dp/tasks/robosuite/simulator.py"
"""Runs in another Python, which has its packages."""
CODE = [
    ROOT / "run.py",
    *(
        file
        for name in ("dp", "workspaces", "hydra_plugins")
        for file in (ROOT / name).rglob("*.py")
        if file != ELSEWHERE
    ),
]


def normal(requirement: str) -> str:
    """The name in a requirement: "PyYAML>=6" -> "pyyaml"."""
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")


def imported(file: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    return {name.partition(".")[0] for name in names}


def test_every_import_is_declared() -> None:
    extras = PROJECT["project"]["optional-dependencies"].values()
    declared = {normal(name) for name in [*PROJECT["project"]["dependencies"], *(n for extra in extras for n in extra)]}
    brought_by = packages_distributions()
    foreign = {name for file in CODE for name in imported(file)} - OURS - set(sys.stdlib_module_names) - {"__future__"}
    undeclared = {name for name in foreign if not {normal(d) for d in brought_by.get(name, [name])} & declared}
    assert undeclared == set()


def test_every_dependency_is_pinned() -> None:
    pinned = {normal(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")}
    assert {normal(name) for name in PROJECT["project"]["dependencies"]} <= pinned


@pytest.mark.parametrize(
    "file",
    ["configs/config.yaml", "configs/hydra/sweeper/grid.yaml", "dp/py.typed", "workspaces/report/page.html.j2",
     "dp/tasks/pusht/bundled/pusht.zarr/.zattrs", "dp/tasks/pusht/bundled/pusht.zarr/data/action/.zarray",
     "dp/tasks/pusht/bundled/pusht_image_small/model.safetensors",
     "dp/tasks/pusht/bundled/pusht_state_small/model.safetensors"],
)  # fmt: skip
def test_an_installed_package_has_what_it_reads(file: str) -> None:
    """The rules that setuptools builds the wheel by: building one takes ten seconds."""
    assert (ROOT / file).is_file()
    packages = find_namespace_packages(str(ROOT), include=PROJECT["tool"]["setuptools"]["packages"]["find"]["include"])
    holding = [package for package in packages if file.startswith(package.replace(".", "/") + "/")]
    data = PROJECT["tool"]["setuptools"]["package-data"]
    inside = {p: file.removeprefix(p.replace(".", "/") + "/") for p in holding}
    patterns = {p: [*data["*"], *data.get(p, [])] for p in holding}
    assert any(fnmatch(inside[p], pattern.replace("**/", "*")) for p in holding for pattern in patterns[p])


def test_the_versions_of_python_agree() -> None:
    assert PROJECT["project"]["requires-python"] == ">=3.11,<3.14"
    assert "(3, 11) <= v <= (3, 13)" in (ROOT / "Makefile").read_text()
