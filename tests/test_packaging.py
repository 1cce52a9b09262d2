"""What is installed: pyproject (ranges), constraints (the tested set) and environment.yml (conda's front) say the same,
every import is declared, and a wheel carries all that a run needs.
"""

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
import zipfile

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


@pytest.fixture(scope="module")
def pyproject(request):
    return tomllib.loads((request.config.rootpath / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def requirements(pyproject):
    extras = pyproject["project"]["optional-dependencies"]
    return [Requirement(line) for group in [pyproject["project"]["dependencies"], *extras.values()] for line in group]


@pytest.fixture(scope="module")
def pins(request):
    lines = (request.config.rootpath / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in found}


# want other versions than the tested set, so each has an environment of its own; .ci/ says what is tested of them there
UNPINNED = {"vllm", "lmms-eval", "trackio", "wandb"}


def test_every_dependency_is_pinned_inside_its_range(requirements, pins):
    for requirement in requirements:
        if requirement.name in UNPINNED:
            assert requirement.name not in pins
            continue
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} has no line in constraints.txt"
        (only,) = pin.specifier
        assert only.operator == "==" and requirement.specifier.contains(only.version, prereleases=False), str(
            requirement
        )


def test_no_pin_is_of_a_build_only_one_machine_has(pins):
    assert not [pin for pin in pins.values() if "+" in str(pin.specifier) or pin.url]
    assert "torchvision" not in pins  # beside the CPU build of torch it breaks transformers' imports


def test_what_is_installed_is_the_tested_set(pins):
    for name, pin in pins.items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of an extra, or of another system
        assert pin.specifier.contains(Version(installed).public), (
            f"{name} {installed} is installed, constraints.txt has {pin}"
        )


def test_conda_installs_through_the_same_two_files(repository, pyproject):
    environment = yaml.safe_load((repository / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert environment["channels"] == ["conda-forge"]
    assert conda[1:] == ["pip"], "a package from conda would escape constraints.txt"
    assert pip["pip"] == ["-c constraints.txt", "-e .[test,easy]"]
    python = Version(conda[0].removeprefix("python="))
    assert Requirement("python" + pyproject["project"]["requires-python"]).specifier.contains(python)
    makefile = (repository / "Makefile").read_text()
    assert re.search(r'install .*-c constraints.txt -e "\.\[test,easy\]"', makefile)


def imported(file):
    """The first name of every absolute import of a file, with whether it is only made inside a function."""
    found = {}

    def visit(node, lazily):
        for child in ast.iter_child_nodes(node):
            inside = lazily or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            names = [alias.name for alias in child.names] if isinstance(child, ast.Import) else []
            if isinstance(child, ast.ImportFrom) and not child.level:
                names = [child.module]
            for name in names:
                found[name.split(".")[0]] = found.get(name.split(".")[0], True) and inside
            visit(child, inside)

    visit(ast.parse(file.read_text(encoding="utf-8")), False)
    return found.items()


def test_imports_are_read_with_where_they_stand(tmp_path):
    (tmp_path / "a.py").write_text(
        "import os.path, torch\nfrom . import b\ndef f():\n    from ray.data import read\n    import torch.nn\n"
    )
    assert dict(imported(tmp_path / "a.py")) == {"os": False, "torch": False, "ray": True}


LOADED_LATE = {  # only functions import these modules
    "auditkit/models/bounded_http.py",
    "auditkit/models/openai.py",
    "auditkit/models/vllm.py",
}


def test_what_the_code_imports_is_declared(repository, pyproject, requirements):
    """Every third-party package that a module imports is a dependency of its own, not somebody else's; one that an
    extra brings is imported inside the function that needs it.
    """
    needed = {canonicalize_name(Requirement(line).name) for line in pyproject["project"]["dependencies"]}
    declared = {canonicalize_name(requirement.name) for requirement in requirements}
    distributions = importlib.metadata.packages_distributions()  # {import name: [distribution]} of what is installed
    ours = (
        sys.stdlib_module_names
        | {"auditkit", "campaigns", "conftest"}
        | {path.stem for path in repository.glob("tests/*.py")}
    )
    modules = list(repository.glob("auditkit/**/*.py"))
    assert len(modules) > 50
    for file in [*modules, *repository.glob("tests/**/*.py")]:
        for name, lazily in imported(file):
            if name in ours:
                continue
            brought_by = {canonicalize_name(one) for one in distributions.get(name, [name])}
            outright = file in modules and not lazily and str(file.relative_to(repository)) not in LOADED_LATE
            allowed = needed if outright else declared
            where = f"{file.relative_to(repository)} imports {name}"
            assert brought_by & allowed, f"{where}, which pyproject.toml does not {'bring' if outright else 'know'}"


def test_the_package_carries_its_data(repository, pyproject):
    patterns = pyproject["tool"]["setuptools"]["package-data"]
    listed = {path for package, globs in patterns.items() for glob in globs
              for path in (repository / package.replace(".", "/")).glob(glob) if path.is_file()}  # fmt: skip
    data = {path for path in (repository / "auditkit").rglob("*")
            if path.is_file() and path.suffix not in (".py", ".pyc")}  # fmt: skip
    assert data <= listed, sorted(path.name for path in data - listed)


# ---- a wheel, beside the checkout -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory):
    """The wheel of this checkout, built from a copy, so that nothing of an earlier build gets into it."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(repository / "auditkit", folder / "source" / "auditkit", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, folder / "source" / name)
    pip("wheel", "--no-build-isolation", "--wheel-dir", folder, folder / "source")
    (built,) = folder.glob("*.whl")
    return built


def pip(*arguments):
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_wheel_holds_the_code_and_its_data_and_nothing_else(repository, wheel):
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    here = {path.relative_to(repository).as_posix() for path in (repository / "auditkit").rglob("*")
            if path.is_file() and path.suffix != ".pyc"}  # fmt: skip
    assert files == here
    for name in ("auditor/prompts/question.txt", "consensus/same_pairs.jsonl", "report/templates/report.html.j2",
                 "report/review_widget.js", "report/review_widget.css", "miniature/target.yaml", "py.typed",
                 "miniature/weights/target/model.safetensors",
                 "miniature/weights/editor/model_index.json"):  # fmt: skip
        assert f"auditkit/{name}" in files


def test_an_installed_wheel_runs_without_the_checkout(repository, wheel, tmp_path):
    pip("install", "--no-compile", "--target", tmp_path / "site", wheel)
    (tmp_path / "try.py").write_text(textwrap.dedent(TRIED))
    run = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(tmp_path / "site")}, "text": True}
    told = subprocess.run([sys.executable, "-m", "auditkit.cli", "--help"], capture_output=True, **run)
    assert told.returncode == 0 and "export" in told.stdout, told.stderr
    tried = subprocess.run([sys.executable, "try.py"], capture_output=True, **run)
    assert tried.returncode == 0, tried.stderr
    assert json.loads(tried.stdout.splitlines()[-1]) == {"outside": []}


TRIED = """
    import json, sys
    from importlib.metadata import entry_points
    from pathlib import Path

    site = Path("site").resolve()
    import auditkit
    from auditkit.auditor import grpo, write  # grpo is what `accelerate launch -m` starts
    from auditkit.data.load import load_images
    from auditkit.models import downloads
    from auditkit.report import page

    assert write.auditor_prompt() and write.auditor_prompt("edit")
    assert page._template("report.html.j2") and page._template("study.html.j2")
    for group in ("auditkit.images", "auditkit.models"):
        assert Path(entry_points(group=group)["miniature"].dist.locate_file("")).resolve() == site, group
    assert (site / "auditkit") in Path(downloads.resolve("miniature:target")).parents
    assert load_images("miniature").pictures("train", 1, 0)
    ours = [module for name, module in sys.modules.items() if name.split(".")[0] == "auditkit"]
    print(json.dumps({"outside": [m.__name__ for m in ours if site not in Path(m.__file__).resolve().parents]}))
"""


# ---- the habits --------------------------------------------------------------------------------------------------


def test_ci_runs_the_tests_and_make_knows_the_two_commands(repository):
    steps = [line for line in (repository / ".ci/run").read_text().splitlines() if line.startswith("make ")]
    assert steps == ["make lint", "make test"]
    assert (repository / ".ci/run").stat().st_mode & 0o111
    subprocess.run(["bash", "-n", repository / ".ci/run"], check=True)
    plans = {}
    for target in ("demo", "test", "lint"):
        plan = subprocess.run(["make", "-n", target], cwd=repository, capture_output=True, text=True)
        assert plan.returncode == 0, plan.stderr
        plans[target] = plan.stdout
    assert "ruff check" in plans["lint"] and "ruff format --check" in plans["lint"] and "/mypy" in plans["lint"]


def test_public_functions_are_typed(repository):
    """Every argument and what is returned; what third parties define is Any."""
    for file in repository.glob("auditkit/**/*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for function in node.body if isinstance(node, (ast.Module, ast.ClassDef)) else ():
                if not isinstance(function, ast.FunctionDef) or function.name.startswith("_"):
                    continue
                arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
                untyped = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
                where = f"{file.relative_to(repository)}: {function.name}"
                assert not untyped and function.returns is not None, f"{where} {untyped}"


def test_no_file_knows_the_machine_it_was_written_on(repository):
    """No path of a home, work or temporary folder in any text, the saved models' JSON files included."""
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=repository, capture_output=True, text=True
    )
    if files.returncode:
        pytest.skip("not a git checkout")
    folders = "|".join(["home", "root", "tmp", "work", "Users", "mnt", "srv", "private", "workspace", "content"])
    machine = re.compile(rf"(?<![\w.~<>-])/({folders})/\w|\b[A-Za-z]:\\\\?(Users|Temp)")
    for text in ('{"_name_or_path": "/' + 'tmp/me/out"}', "C:" + "\\Users\\me", "see /" + "home/me/x"):
        assert machine.search(text)
    assert not machine.search("https://example.org/home/x")
    for name in files.stdout.splitlines():
        data = (repository / name).read_bytes() if (repository / name).is_file() else b""
        if b"\0" in data[:8000] or not data:
            continue  # weights and pictures, or a file that was deleted
        found = machine.search(data.decode("utf-8"))
        assert not found, f"{name}: {found.group()}"


def test_notebooks_are_committed_without_outputs(repository):
    """As the hook of .pre-commit-config.yaml strips them."""
    if not importlib.util.find_spec("nbstripout"):
        pytest.skip("nbstripout is not installed: pip install auditkit[test]")
    hooks = yaml.safe_load((repository / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    (hook,) = [hook for hook in hooks if hook["id"] == "nbstripout"]
    notebooks = sorted((repository / "notebooks").glob("*.ipynb"))
    command = [*shlex.split(hook["entry"])[1:], *hook["args"], "--verify", *notebooks]
    done = subprocess.run([sys.executable, "-m", "nbstripout", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
