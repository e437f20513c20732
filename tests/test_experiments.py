"""The experiments run, and their numbers say what the documentation says."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from bnn.priors import location_scale

FOLDER = Path(__file__).parent.parent / "experiments"
PUBLISHED = FOLDER.parent / "docs" / "experiments"


def script(name: str, folder: Path = FOLDER):
    """A script of the folder as a module; scripts import each other by name, as when they are run."""
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run(name: str, out: Path, *arguments: str) -> dict:
    """Run an experiment; its record, of which everything that all of them promise is checked."""
    script(name).main.main([*arguments, "--out", str(out)], standalone_mode=False)
    record = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
    assert set(record) == {"experiment", "command", "settings", "seconds", "versions", "machine", "results", "tables"}
    assert record["command"].startswith(f"python experiments/{name}.py")
    kinds = [path.suffix for path in out.iterdir() if path.is_file()]
    assert {".json", ".md", ".csv", ".png"} == set(kinds)
    assert all(path.stat().st_size > 10_000 for path in out.glob("*.png"))
    return record["results"]


def published(name: str) -> dict:
    """The figures of the full run that the documentation shows."""
    return json.loads((PUBLISHED / f"{name}.json").read_text(encoding="utf-8"))["results"]


@pytest.fixture(scope="module")
def weight_decay():
    return script("weight_decay")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run("weight_decay", tmp_path_factory.mktemp("weight_decay"), "--quick")


def stop(results, name: str) -> dict:
    return next(row for row in results["stops"] if row["name"] == name)


def test_map_takes_the_steps_of_sgd(results):
    follow = results["follow"]
    assert follow["steps"] >= 200
    assert follow["moved"] > 0.1
    assert follow["largest_difference"] < 1e-6
    assert follow["difference_of_fit"] < 1e-6


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("loss_factor", "2 * noise_scale**2", "noise_scale**2"),  # squares taken for a log-density
        ("loss_factor", "/ num_outputs\n", "* n_data\n"),  # a mean taken for a sum
    ],
)
def test_a_wrong_prior_would_be_seen(weight_decay, patch_line, name, old, new):
    patch_line(location_scale, name, old, new)
    follow = weight_decay.follow_sgd(weight_decay.Config(follow_epochs=2), weight_decay.load())
    assert follow["largest_difference"] > 1e-4


def test_l2_penalties_end_at_the_mode(results):
    """Of the distance between the mode and the fit without a penalty, 0.57, less than a hundredth is left."""
    for name in ("SGD, weight_decay", "Adam, weight_decay (L2)", "bnn.MAP, Gaussian prior"):
        row = stop(results, name)
        assert row["from_mode"] < 0.01 * row["from_unpenalised"]


def test_adamw_ends_elsewhere(results):
    """The more rows in a batch, the less its penalty; and the scale of the loss does not matter to it."""
    whole, batches = stop(results, "AdamW, all rows"), stop(results, "AdamW, batches of 32")
    l2 = stop(results, "Adam, weight_decay (L2)")
    assert whole["from_mode"] > batches["from_mode"] > 100 * l2["from_mode"]
    assert results["adamw_moves"] < 1e-6 < 1e-2 < results["mode_moves"]


def test_adamw_is_on_its_way_to_where_its_rule_says(results):
    """In these few steps it does not arrive; it is nearer to that place than to the mode was to begin with."""
    row = stop(results, "AdamW, batches of 32")
    assert row["from_expected"] < row["from_unpenalised"]


@pytest.mark.parametrize("penalty", ["L2", "L1"])
def test_map_is_the_penalised_fit(results, penalty):
    """scikit-learn's ridge and lasso, in units of the weights (the largest is 0.3)."""
    for row in results["paths"][penalty]:
        assert np.abs(np.subtract(row["map"], row["reference"])).max() < 5e-3


def test_mean_field_has_its_known_answer(results):
    """Standard deviations 1 / sqrt(diagonal of the precision), and not those of the exact posterior, which are larger.

    Inputs are correlated: the two differ by 9 % at least, and by a factor of three at most.
    """
    for row in results["paths"]["L2"]:
        got, known, exact = (np.array(row[key]) for key in ("std", "exact_mean_field_std", "exact_std"))
        assert (exact > 1.09 * known).all()
        assert (np.abs(got - known) < np.abs(got - exact)).all()


def test_more_weights_than_rows_overfit_without_a_prior(results):
    """What the prior costs on the rows that are fitted it gives back on the others."""
    rows = {row["way"]: row for row in results["overfit"]["rows"]}
    none = rows["no penalty"]
    for way in ("L2: mode, Gaussian prior", "posterior, Gaussian prior"):
        assert rows[way]["train"] > 1.1 * none["train"]
        assert rows[way]["test"] < none["test"]
    path = np.array(results["overfit"]["halves"][0]["paths"]["no penalty"])
    assert path[-1, 0] < path[:, 0].min() + 1e-3
    assert path[-1, 1] > path[:, 1].min() + 0.02  # held out: best on the way, not at the end


@pytest.mark.slow
def test_the_default_run_says_what_the_quick_one_says(tmp_path):
    results = run("weight_decay", tmp_path)
    assert results["follow"]["largest_difference"] < 1e-6
    assert results["follow"]["difference_of_fit"] < 1e-6


def test_what_a_prior_believes_by_depth_and_width(tmp_path):
    """Spread does not grow with width under a fan-in scale and does without it; depth flattens, or roughens."""
    results = run("prior_predictive", tmp_path, "--quick")
    rows = {(row["prior"], row["depth"], row["width"]): row for row in results["size"]}
    kept, plain = 'Normal("fan_in", gain=1)', "Normal(1)"
    # Standard deviations of 100 draws have errors of 7 %; widths 5 and 20 differ by a factor of 2 in the root.
    assert rows[kept, 1, 20]["spread"] < 1.4 * rows[kept, 1, 5]["spread"]
    assert rows[plain, 1, 20]["spread"] > 1.4 * rows[plain, 1, 5]["spread"]
    assert rows[kept, 4, 20]["slope"] < 0.5 * rows[kept, 1, 20]["slope"]
    assert rows[plain, 4, 20]["slope"] > 2 * rows[plain, 1, 20]["slope"]
