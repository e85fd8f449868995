"""The house is what docs/architecture.md draws: imports go down, on four floors, without a circle."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    4: {"engines", "exports", "rollouts", "tasks.pusht", "tasks.metaworld", "tasks.blockpush", "tasks.robosuite"},
    3: {"policy", "encoders", "objectives", "data", "guidance"},
    2: {"types", "denoisers", "pretrained"},
    1: {"tasks", "trusted", "modalities", "kernels", "intervals", "files", "processes", "progress", "limits"}
    | {"distributed"},
}
ALONE = {"ema", "devices"}
"""Each imports nothing of `dp` but `limits` or `distributed`, and is imported by nothing in it."""


def unit(module: str) -> str:
    """dp.tasks.pusht.env -> tasks.pusht; dp.tasks.task -> tasks; dp.data.windows -> data."""
    parts = module.split(".")[1:]
    if parts[:1] == ["tasks"] and (ROOT / "dp" / "tasks" / "/".join(parts[1:2])).is_dir() and len(parts) > 1:
        return f"tasks.{parts[1]}"
    return parts[0] if parts else ""


def imports(file: Path) -> set[str]:
    """Modules of `dp` that the file imports, in functions too; not for type checkers."""
    tree = ast.parse(file.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    nodes = [node for node in ast.walk(tree) if id(node) not in typing_only]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    from_ = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    names += [node.module for node in from_ if node.module != "dp"]
    names += [f"dp.{alias.name}" for node in from_ if node.module == "dp" for alias in node.names]
    return {name for name in names if name.split(".")[0] == "dp"}


@pytest.fixture(scope="module")
def edges() -> set[tuple[str, str]]:
    found = set()
    for file in (ROOT / "dp").rglob("*.py"):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found |= {(unit(module), unit(name)) for name in imports(file)}
    return {(one, other) for one, other in found if one != other and other}


def test_every_import_goes_down(edges: set[tuple[str, str]]) -> None:
    floor = {name: number for number, names in FLOORS.items() for name in names}
    assert {name for edge in edges for name in edge} <= floor.keys() | ALONE
    up = {(one, other) for one, other in edges if one not in ALONE and floor[one] <= floor[other]}
    assert up == set()


def test_the_picture_is_the_documents() -> None:
    picture = (ROOT / "docs/architecture.md").read_text().partition("## Floors")[2].partition("## Map")[0]
    for number, names in FLOORS.items():
        (line,) = re.findall(rf"^{number}   (.*)$", picture, re.M)
        assert {name.replace("/", ".") for name in re.findall(r"[\w/]+", line)} >= names


def test_the_verbs_know_no_task() -> None:
    """Facts of a task are in its folder, in its configurations, and where files of the first version are read."""
    fact = re.compile(r"pusht|PushT|0\.95|100_000|RandomState|\"image\"|'image'")
    allowed = {"workspaces/load.py", "dp/tasks/task.py", "workspaces/trust.py"}
    allowed |= {"dp/data/formats/lerobot.py"}  # the word is the format's
    found: dict[str, str] = {}
    for folder in ("dp", "workspaces"):
        for file in (ROOT / folder).rglob("*.py"):
            name = str(file.relative_to(ROOT))
            if re.match(r"dp/tasks/\w+/", name) or name in allowed:
                continue
            text = file.read_text().replace("dp-pusht[", "").replace("+experiment=pusht_", "")
            if match := fact.search(text):
                found[name] = match[0]
    assert found == {}


def test_nothing_takes_whatever_comes() -> None:
    for folder in ("dp", "workspaces"):
        for file in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(file.read_text())
            kwargs = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.args.kwarg]
            assert kwargs in ([], ["_make"]), f"{file}: {kwargs}"
