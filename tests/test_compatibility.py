"""The file that meets ArviZ's two series, by itself, under each interpreter that has it: one set of numbers."""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FILE = Path(__file__).parent.parent / "bnn" / "analysis" / "compatibility.py"

#: Runs without torch and without bnn: 3.12 and later have other wheels.
CHECK = """
import importlib.util, json, sys
import numpy as np
spec = importlib.util.spec_from_file_location("compatibility", sys.argv[1])
own = importlib.util.module_from_spec(spec)
sys.modules["compatibility"] = own
spec.loader.exec_module(own)
import arviz_stats, xarray
from arviz_base import dict_to_dataset

rng = np.random.default_rng(0)
chains = rng.standard_normal((4, 50, 3))
chains[0, :, 1] += 3.0
chains[:, :, 2] = 5.0
heavy = -0.9 * np.log(rng.uniform(size=4000))
likelihood = rng.standard_normal((200, 6)) - 1
trees = {}
for name, shift in (("good", 0.0), ("worse", 0.345678)):
    values = {"y": rng.standard_normal((2, 100, 30)) * 0.1 - 1 - shift * rng.uniform(size=30)}
    data = dict_to_dataset(values, dims={"y": ["row"]}, sample_dims=["chain", "draw"])
    draws = dict_to_dataset({"w": rng.standard_normal((2, 100))}, sample_dims=["chain", "draw"])
    trees[name] = xarray.DataTree.from_dict({"log_likelihood": data, "posterior": draws})
rows = own.ranking(trees)
weights, k = own.smoothed(heavy)
print(json.dumps({
    "version": arviz_stats.__version__,
    "rhat": own.rhat(chains).tolist(),
    "ess": own.ess(chains).tolist(),
    "k": k,
    "power": own.power_scaling(chains, chains[:, :, 0]).tolist(),
    "flat k": own.smoothed(np.full(500, 3.0) + 1e-9 * rng.uniform(size=500))[1],
    "total": float(np.exp(weights).sum()),
    "loo": [column.tolist() for column in own.loo_by_row(likelihood)],
    "by tree": {name: [float(arviz_stats.loo(tree).elpd), float(own.loo_by_row(
        tree["log_likelihood"]["y"].values.reshape(200, 30))[0].sum())] for name, tree in trees.items()},
    "ranking": {name: [row.elpd, row.behind, row.error, row.weight] for name, row in rows.items()},
    "order": list(rows),
    "summary": float(own.summary(trees["good"])["mean"].iloc[0]),
    "mean": float(trees["good"]["posterior"]["w"].mean()),
}))
"""


@functools.cache
def interpreters() -> dict[str, str]:
    """This one, and those of later series that are at hand (or named by BNN_ARVIZ_PYTHON)."""
    found = {"this": sys.executable}
    for name in ("3.12", "3.13", "3.14"):
        path = shutil.which(f"python{name}")
        if path:
            found[name] = path
    if "BNN_ARVIZ_PYTHON" in os.environ:
        found["other"] = os.environ["BNN_ARVIZ_PYTHON"]
    return found


@functools.cache
def has_arviz(python: str) -> bool:
    """Whether it is installed there; looked up, as to import it takes seconds."""
    code = "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ('arviz_stats', 'xarray'))))"
    return subprocess.run([python, "-c", code], capture_output=True, check=False, timeout=120).returncode == 0


@functools.cache
def results(name: str) -> dict:
    if name not in interpreters():
        pytest.skip(f"no python{name} is at hand")
    python = interpreters()[name]
    if not has_arviz(python):
        pytest.skip(f"{python} has no arviz_stats")
    done = subprocess.run([python, "-c", CHECK, str(FILE)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.replace("NaN", "null").replace("-Infinity", "-1e999"))


NAMES = ["this", "3.12", "3.13", "3.14", "other"]


@pytest.mark.parametrize("name", NAMES)
def test_convergence_statistics(name):
    found = results(name)
    rhat, ess = found["rhat"], found["ess"]
    assert rhat[0] < 1.05 < 1.2 < rhat[1]
    assert rhat[2] is None  # a quantity that never moves
    assert ess[2] is None
    assert 100 < ess[0] < 300
    assert ess[1] < 50


@pytest.mark.parametrize("name", NAMES)
def test_pareto_smoothing(name):
    found = results(name)
    assert found["k"] == pytest.approx(0.9, abs=0.15)  # ratios u^-0.9 have the shape 0.9; error of 190 in the tail
    assert found["flat k"] == -np.inf
    assert found["total"] == pytest.approx(1, abs=1e-9)
    # Raising exp(w) to a power moves w itself, an independent quantity hardly, and one that never moves not at all.
    assert found["power"][0] > 0.1 > 0.05 > found["power"][1] > found["power"][2] == 0


@pytest.mark.parametrize("name", NAMES)
def test_loo_by_row_is_that_of_a_tree(name):
    found = results(name)
    for of_tree, of_rows in found["by tree"].values():
        assert of_rows == pytest.approx(of_tree, rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_the_ranking_is_not_rounded_and_has_one_sign(name):
    found = results(name)
    ranking = found["ranking"]
    assert found["order"] == ["good", "worse"]
    assert ranking["good"][1] == 0
    gap = ranking["good"][0] - ranking["worse"][0]
    assert ranking["worse"][1] == pytest.approx(gap, rel=1e-9)  # rounded, it would be off in the fourth digit
    assert ranking["good"][3] + ranking["worse"][3] == pytest.approx(1, abs=1e-6)
    assert found["summary"] == pytest.approx(found["mean"], rel=1e-9)


@pytest.mark.parametrize("name", NAMES[1:])
def test_both_series_give_the_same_numbers(name):
    one, other = results("this"), results(name)
    for key in ("rhat", "ess"):
        assert one[key][:2] == pytest.approx(other[key][:2], rel=1e-9), key
    assert one["k"] == pytest.approx(other["k"], rel=1e-9)
    for a, b in zip(one["loo"], other["loo"], strict=True):
        assert a == pytest.approx(b, rel=1e-9)
    for model, row in one["ranking"].items():
        assert row == pytest.approx(other["ranking"][model], rel=1e-6, abs=1e-6)
