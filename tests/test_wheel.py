"""A wheel builds, installs, and has the public names: in a place from which the repository cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow

#: Run from the installed wheel alone.
NAMES = """
import sys, tempfile, pathlib
import bnn
assert pathlib.Path(bnn.__file__).is_relative_to(sys.argv[1]), bnn.__file__
missing = [name for name in bnn.__all__ if getattr(bnn, name, None) is None]
assert not missing, missing
import torch
from torch import nn
x = torch.randn(20, 3)
model = bnn.BNN(nn.Linear(3, 1), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(1.0))
posterior = bnn.fit(model, (x, x.sum(1, keepdim=True)), bnn.MAP(epochs=1), compile="eager", progress=False)
with tempfile.TemporaryDirectory() as folder:
    posterior.save(folder + "/run")
    again = bnn.load(folder + "/run", model)
assert torch.equal(again.predict(x).mean, posterior.predict(x).mean)
print("fine")
"""


def run(*command: str | Path, **options) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built without the network, by the tools that are installed."""
    pytest.importorskip("hatchling", reason="hatchling, the build backend, is not installed")
    pytest.importorskip("build", reason="build is not installed")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, ROOT)
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"bnn"}
    assert "bnn/py.typed" in names
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "bnn").rglob("*.py")}
    assert sources <= set(names)
    assert not [name for name in names if "__pycache__" in name]


def test_the_installed_wheel_works_where_the_repository_is_not(wheel, tmp_path):
    """Dependencies are those of this environment, without its editable install of the repository."""
    place = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", place, wheel)
    dependencies = tmp_path / "dependencies"
    dependencies.mkdir()
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if (
            "bnn" not in path.name.replace("-", "_").split("_")
            and not path.name.startswith("_bnn")
            and path.suffix != ".pth"
        ):
            (dependencies / path.name).symlink_to(path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(place), str(dependencies)])}
    # -S: no site-packages, and so no editable install.
    done = run(sys.executable, "-S", "-c", NAMES, place, cwd=tmp_path, env=environment)
    assert done.stdout.strip().endswith("fine")
    script = run(sys.executable, "-S", "-m", "bnn", "--version", cwd=tmp_path, env=environment)
    assert "version" in script.stdout
