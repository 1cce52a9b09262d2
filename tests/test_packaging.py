"""The frame: pyproject (ranges), constraints (the tested set) and environment.yml (conda's front) say the same."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib

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


UNPINNED = {"vllm", "lmms-eval"}  # want other versions than the tested set, so each has an environment of its own


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


def test_what_the_code_imports_is_declared(repository, requirements):
    """Every third-party package that a module imports is a dependency of its own, not somebody else's."""
    imports = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn", "skimage": "scikit-image"}
    declared = {canonicalize_name(requirement.name) for requirement in requirements}
    third_party = set(importlib.metadata.packages_distributions()) - sys.stdlib_module_names - {"auditkit", "conftest"}
    for file in [*repository.glob("auditkit/**/*.py"), *repository.glob("tests/*.py")]:
        for name in re.findall(r"^\s*(?:from|import) ([A-Za-z_]\w*)", file.read_text(), re.M):
            if name in third_party:  # else it is ours, Python's, or a sentence of a docstring
                assert canonicalize_name(imports.get(name, name)) in declared, f"{file.name} imports {name}"


def test_the_package_carries_its_data(repository, pyproject):
    patterns = pyproject["tool"]["setuptools"]["package-data"]
    listed = {path for package, globs in patterns.items() for glob in globs
              for path in (repository / package.replace(".", "/")).glob(glob) if path.is_file()}  # fmt: skip
    data = {path for path in (repository / "auditkit").rglob("*")
            if path.is_file() and path.suffix not in (".py", ".pyc")}  # fmt: skip
    assert data <= listed, sorted(path.name for path in data - listed)


def test_ci_runs_the_tests_and_make_knows_the_two_commands(repository):
    assert "make test" in (repository / ".ci/run").read_text()
    assert (repository / ".ci/run").stat().st_mode & 0o111
    subprocess.run(["bash", "-n", repository / ".ci/run"], check=True)
    for target in ("demo", "test"):
        plan = subprocess.run(["make", "-n", target], cwd=repository, capture_output=True, text=True)
        assert plan.returncode == 0, plan.stderr


def test_no_file_knows_the_machine_it_was_written_on(repository):
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=repository, capture_output=True, text=True
    )
    if files.returncode:
        pytest.skip("not a git checkout")
    here = "|".join(["/" + "root/", "/" + "work/", "/" + "tmp/"])
    for name in files.stdout.splitlines():
        if name.endswith((".py", ".yaml", ".yml", ".toml", ".txt", ".md", ".ipynb", "Makefile", ".ci/run")):
            assert not re.search(here, (repository / name).read_text(encoding="utf-8")), name
