"""Libraries that are too old or too new are named before any file is called damaged."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from helpers import errors, load_model
from helpers.loading import NEEDS

ROOT = Path(__file__).resolve().parent.parent


def pretend(folder, name, version):
    """Installed is what the first folder on the path has a record of."""
    record = folder / f"{name}-{version}.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize(
    ("name", "version"),
    [("transformers", "4.46.3"), ("transformers", "6.0.0"), ("tokenizers", "0.20.3"), ("torch", "2.1")],
)
def test_a_wrong_version_is_named_and_no_weights_are_blamed(tmp_path, monkeypatch, name, version):
    pretend(tmp_path, name, version)
    monkeypatch.syspath_prepend(tmp_path)
    for model in ("pocket", "smollm2", tmp_path):
        with pytest.raises(errors.WrongVersion, match=rf"{name} {version}, and the course needs {name}>=.*make lab"):
            load_model(model)


@pytest.mark.parametrize(
    ("name", "version"), [("transformers", "4.57.6"), ("transformers", "5.99"), ("torch", "2.13.0+cpu")]
)
def test_versions_that_work_are_let_through(tmp_path, monkeypatch, name, version):
    pretend(tmp_path, name, version)
    monkeypatch.syspath_prepend(tmp_path)
    assert load_model().n_blocks == 12


def test_the_ranges_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {one.name: one.specifier for one in map(Requirement, project["dependencies"])}
    assert {name: asked[name] for name in NEEDS} == {
        name: Requirement(name + text).specifier for name, text in NEEDS.items()
    }
