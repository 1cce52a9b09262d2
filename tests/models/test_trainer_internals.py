"""What auditkit uses of TRL and transformers that these keep private is there, in the versions that are installed."""

import importlib
import importlib.metadata
import inspect
import tomllib

import pytest
from packaging.requirements import Requirement

from auditkit.models import trainer_internals


@pytest.mark.parametrize("package", trainer_internals.TESTED)
def test_the_installed_version_lies_within_the_bounds(package, repository):
    tested, installed = trainer_internals.TESTED[package], importlib.metadata.version(package)
    stated = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["dependencies"]
    (bounds,) = (one.specifier for one in map(Requirement, stated) if one.name == package)
    major, minor = map(int, tested.split("."))
    assert str(bounds) == f"<{major}.{minor + 1},>={tested}", f"pyproject.toml: bind {package} to the tested {tested}"
    assert installed in bounds, (
        f"{package} {installed} lies outside {bounds}, with which models/trainer_internals.py was tested: install "
        f"{tested}, or look through that file and raise the bounds."
    )


@pytest.mark.parametrize(("place", "name"), trainer_internals.NAMES.items())
def test_every_private_name_is_still_there(place, name):
    module, owner = place.rsplit(".", 1)
    found = getattr(importlib.import_module(module), owner, None)
    assert hasattr(found, name), f"{place} has no {name} any more: models/trainer_internals.py needs another way."


@pytest.mark.parametrize("name", ["self._metrics", "self._step"])
def test_every_private_attribute_is_still_set(name):
    from trl import GRPOTrainer

    source = inspect.getsource(GRPOTrainer)
    assert f"{name} = " in source, f"trl.GRPOTrainer sets no {name} any more: see models/trainer_internals.py."
