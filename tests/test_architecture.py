"""The rooms of auditkit/, in the order in which data flows: an import only ever points to a room above it.

`auditkit/__init__.py` lists the rooms; what a module imports inside its functions counts as well.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import auditkit

PACKAGE = Path(auditkit.__file__).parent
MODULES = {
    ".".join(("auditkit", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): file
    for file in PACKAGE.rglob("*.py")
}
TOP = (
    "redact",
    "text",
    "errors",
    "yaml_file",
    "stats",
    "specs",
    "session",
    "param_rules",
    "params",
)  # read by all rooms, in this order


def imports(module: str) -> set[str]:
    """The modules of auditkit that a module imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "auditkit":
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are written in full, from auditkit.…"
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "auditkit"}
    return found - {"auditkit"}


def floor(module: str) -> int:
    """How far down the list a module stands: the few beside the rooms first, the command line last."""
    _, first, *_ = module.split(".")
    order = [*TOP, *auditkit.ROOMS, "cli"]
    return order.index(first)


def test_every_room_is_on_the_list_and_says_what_it_is_for():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == set(auditkit.ROOMS)
    for room in rooms:
        said = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())) or ""
        assert 3 <= len(said.splitlines()) <= 12, f"{room}/__init__.py: three to a dozen lines"
        for part in ("In:", "Out:", "Start with", "Imports"):
            assert part in said, f'{room}/__init__.py does not say "{part}"'
    beside = {file.stem for file in PACKAGE.glob("*.py")} - {"__init__", "cli"}
    assert beside == set(TOP)


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"auditkit"}))
def test_imports_point_up(module):
    back = sorted(other for other in imports(module) if floor(other) > floor(module))
    assert not back, f"{module} imports what stands below it: {', '.join(back)}"


def test_no_circles():
    graph = {module: imports(module) for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_name_stands_in_four_modules():
    """A name that is defined in four places says nothing in any of them; `main` is what Python calls it."""
    where: dict[str, list[str]] = {}
    for module, file in MODULES.items():
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                where.setdefault(node.name, []).append(module)
    assert {name: modules for name, modules in where.items() if len(modules) > 3 and name != "main"} == {}


def test_trl_comes_with_the_trainings_alone():
    """It takes seconds to import: whoever only asks, writes or reads does without."""
    heavy, before = {"trl"}, 0
    while len(heavy) > before:
        before = len(heavy)
        heavy |= {module for module in MODULES if _at_the_top(module) & heavy}
    rooms = {module.split(".")[1] for module in MODULES if imports(module) & heavy} | {
        module.split(".")[1] for module in heavy - {"trl"}
    }
    assert rooms == {"auditor", "planning", "workshop", "cli"}, heavy  # an exercise trains


def _at_the_top(module: str) -> set[str]:
    """What is imported whenever a module is: modules of ours, and the names of others."""
    found = set()
    for node in ast.parse(MODULES[module].read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found
