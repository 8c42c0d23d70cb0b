"""pyproject.toml, ci/constraints.txt, environment.yml, Makefile, .ci/run and README agree."""

import re
import subprocess
import sysconfig
import tomllib
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from helpers import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {
    requirement.name.lower().replace("_", "-"): str(requirement.specifier).removeprefix("==")
    for requirement in map(
        Requirement,
        [
            line
            for line in (ROOT / "ci" / "constraints.txt").read_text().splitlines()
            if line and not line.startswith("#")
        ],
    )
}
DECLARED = [
    Requirement(text)
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for text in group
]


@pytest.mark.parametrize("requirement", DECLARED, ids=lambda r: r.name)
def test_every_dependency_is_pinned_inside_its_range(requirement):
    assert requirement.specifier.contains(PINS[requirement.name.lower()])


def test_every_pin_is_one_exact_version():
    assert all(re.fullmatch(r"[0-9][0-9A-Za-z.+!-]*", version) for version in PINS.values())


def test_installed_versions_are_the_pins():
    # only what pip installed: setuptools brings packages of its own along when it is imported
    installed = {
        (d.metadata["Name"] or "").lower().replace("_", "-"): d.version
        for d in metadata.distributions(path=[sysconfig.get_path("purelib")])
    }
    ours = {name: version for name, version in installed.items() if name in PINS}
    assert len(ours) > 100
    assert ours == {name: PINS[name] for name in ours}


def test_conda_environment_uses_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (python,) = [d for d in environment["dependencies"] if str(d).startswith("python=")]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.removeprefix("python="))
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    make = (ROOT / "Makefile").read_text()
    for option in pip:
        assert option.replace(".[test]", "'.[test]'") in make, f"make does not use {option}"
    assert pip == ["--constraint ci/constraints.txt", "--editable .[test]"]


def test_continuous_integration_runs_the_two_commands_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    commands = re.findall(r"^make .+$", script, re.M)
    assert commands == ["make reproduce", "make test"]
    readme = (ROOT / "README.md").read_text()
    assert all(command in readme for command in commands)


def test_old_python_is_refused_before_anything_is_made(tmp_path):
    old = tmp_path / "python-old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    (tmp_path / "ci").mkdir()
    for name in ("Makefile", "pyproject.toml", "ci/constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    command = ["make", "reproduce", f"PYTHON={old}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed" in done.stdout
    assert not (tmp_path / ".venv").exists()
