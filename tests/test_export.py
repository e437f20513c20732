"""Exported files give predict's numbers, in a process that has neither bnn nor Pyro."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from likelihoods import TABLE, model_of
from marks import some
from networks import KINDS
from torch import nn

import bnn
from bnn.export.heads import mixture_quantiles

LEVELS = (0.05, 0.5, 0.95)
ROWS = (1, 7, 1000)
#: Reads a file with torch alone: whatever else is imported fails.
READER = """
import importlib.machinery, sys

class Blocked:  # a loader too: torch asks whether modules are there, without importing them
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"bnn", "pyro", "arviz", "arviz_base", "sklearn", "xarray", "narwhals", "safetensors"}:
            return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec):
        raise ImportError(f"{spec.name} is not there in production")

    def exec_module(self, module):
        raise AssertionError

sys.meta_path.insert(0, Blocked())
import json, torch
files = {"metadata.json": ""}
program = torch.export.load(sys.argv[1], extra_files=files)
module, metadata = program.module(), json.loads(files["metadata.json"])
given = json.loads(open(sys.argv[2]).read())
found = []
for inputs in given:
    tensors = [torch.tensor(x, dtype=getattr(torch, d)) for x, d in inputs]
    found.append({name: value.tolist() for name, value in module(*tensors).items()})
assert not {"bnn", "pyro"} & set(sys.modules)
print(json.dumps({"found": found, "metadata": metadata}))
"""


def read(path: Path, inputs: list[tuple[torch.Tensor, ...]]) -> tuple[list[dict[str, torch.Tensor]], dict]:
    """What the file gives for each of these inputs, in another process that has only torch."""
    text = [[(x.tolist(), str(x.dtype).removeprefix("torch.")) for x in each] for each in inputs]
    given = path.with_suffix(".json")
    given.write_text(json.dumps(text), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", READER, str(path), str(given)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    return [{name: torch.tensor(v) for name, v in each.items()} for each in answer["found"]], answer["metadata"]


def expected(prediction: bnn.Prediction, name: str) -> torch.Tensor:
    """What `predict` says of an output of the file."""
    return {
        "mean": lambda: prediction.mean,
        "sd": lambda: prediction.std,
        "epistemic_sd": lambda: prediction.variance.epistemic.sqrt(),
        "aleatoric_sd": lambda: prediction.variance.aleatoric.sqrt(),
        "probabilities": lambda: prediction.probs,
        "entropy": lambda: prediction.entropy.total,
        "mutual_information": lambda: prediction.entropy.epistemic,
        "quantiles": lambda: prediction.quantile(LEVELS).movedim(0, -1),
    }[name]()


def same(found: dict[str, torch.Tensor], prediction: bnn.Prediction) -> None:
    """To 1e-5, beside the size of the number."""
    assert found
    for name, value in found.items():
        want = expected(prediction, name)
        assert value.shape == want.shape, name
        worst = ((value - want).abs() / want.abs().clamp(min=1)).max().item()
        assert worst < 1e-5, f"{name} is off by {worst:.2g}"


def regression_model() -> bnn.BNN:
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1))
    return bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())


def classification_model() -> bnn.BNN:
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4))
    return bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Categorical())


def fitted(kind: str, regression, classification, quick) -> tuple[bnn.Posterior, tuple[int, ...]]:
    """One posterior of each kind that an export treats in its own way, and the shape of a row of its inputs."""
    mean_field = bnn.MeanField(epochs=2)
    if kind == "mean field":
        return quick(regression_model(), regression, mean_field), (3,)
    if kind == "classes, ensemble":
        return quick(classification_model(), classification, bnn.Ensemble(members=3, of=bnn.MAP(epochs=2))), (3,)
    if kind == "laplace, draws":
        method = bnn.Laplace(of=bnn.MAP(epochs=2), tune=None, predictive="draws")
        return quick(classification_model(), classification, method), (3,)
    if kind == "linearised, several targets":
        net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
        model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
        x, y = regression
        return quick(model, (x, torch.cat([y, -y], 1)), bnn.Laplace(of=bnn.MAP(epochs=2), tune=None)), (3,)
    if kind.startswith("linearised, classes"):
        method = bnn.Laplace(of=bnn.MAP(epochs=2), tune=None, weights="last_layer" if "last" in kind else "all")
        return quick(classification_model(), classification, method), (3,)
    if kind == "nuts":
        return quick(regression_model(), regression, bnn.NUTS(num_samples=10, warmup=10, chains=2)), (3,)
    if kind == "dropout":
        net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 1))
        model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
        return quick(model, regression, bnn.MCDropout(epochs=2)), (3,)
    net = KINDS[kind].build()
    x = KINDS[kind].inputs(12)
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    return quick(model, (x, torch.randn(12, 1)), mean_field), tuple(x.shape[1:])


def check(kind: str, regression, classification, quick, tmp_path) -> None:
    posterior, shape = fitted(kind, regression, classification, quick)
    draws = 5 if posterior.num_draws is None else None
    path = posterior.export(tmp_path / "model.pt2", draws=draws, quantiles=LEVELS)
    inputs = [torch.randn(rows, *shape) for rows in ROWS]
    found, metadata = read(path, [(x,) for x in inputs])
    for x, each in zip(inputs, found, strict=True):
        same(each, posterior.predict(x, draws))
    assert list(found[0]) == list(metadata["outputs"])
    assert ("quantiles" in found[0]) == ("quantile" in posterior.model.likelihood.fields)


@pytest.mark.parametrize("kind", some(["mean field", "classes, ensemble"], {"classes, ensemble"}))
def test_the_file_gives_what_predict_gives_with_torch_alone(kind, regression, classification, quick, tmp_path):
    check(kind, regression, classification, quick, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "linearised, several targets",
        "linearised, classes",
        "linearised, classes, last layer",
        "laplace, draws",
        "nuts",
        "dropout",
        "batch norm",
        "nets.lenet",
        "lstm",
        "attention",
    ],
)
def test_the_file_gives_what_predict_gives_for_every_kind(kind, regression, classification, quick, tmp_path):
    check(kind, regression, classification, quick, tmp_path)


def test_quantiles_are_those_of_the_mixture_and_the_check_sees_the_wrong_ones(model, regression, quick, patch_line):
    """Few draws far apart: a mixture with two modes, whose quantiles are no Gaussian's."""
    posterior = quick(model, regression, bnn.Ensemble(members=2, of=bnn.MAP(epochs=1)))
    prediction = posterior.predict(regression[0][:1])
    prediction.outputs[0] += 5
    levels = torch.tensor(LEVELS)

    def worst() -> float:
        own = bnn.Prediction(prediction.likelihood, prediction.outputs, prediction.latents)
        return (mixture_quantiles(own, levels) - own.quantile(LEVELS)[:, 0].movedim(0, -1)).abs().max().item()

    assert worst() < 1e-5
    import bnn.export.heads as heads

    patch_line(heads, "mixture_quantiles", "mean(1) < target", "amax(1) < target")
    wrong = heads.mixture_quantiles(prediction, levels) - prediction.quantile(LEVELS)[:, 0].movedim(0, -1)
    assert wrong.abs().max() > 0.1


@pytest.mark.parametrize(
    "likelihood",
    [
        bnn.likelihoods.Laplace(0.7),
        bnn.likelihoods.LogNormal(0.7),
        bnn.likelihoods.Weibull(1.5),
        bnn.likelihoods.Gamma(0.4),
        bnn.likelihoods.Quantile(0.8, 0.5),
        bnn.likelihoods.Poisson(),
        bnn.likelihoods.MixtureDensity(2),
        bnn.likelihoods.HeteroscedasticGaussian(),
    ],
    ids=lambda likelihood: type(likelihood).__name__,
)
def test_quantiles_of_every_family_that_a_file_can_hold(likelihood):
    width = {"MixtureDensity": (6,), "HeteroscedasticGaussian": (2,)}.get(type(likelihood).__name__, ())
    latents = {name: value.double().expand(9) for name, value in likelihood.latents(torch.zeros(1).double()).items()}
    prediction = bnn.Prediction(likelihood, torch.randn(9, 1, *width).double(), latents)
    levels = torch.tensor(LEVELS).double()
    found, want = mixture_quantiles(prediction, levels), prediction.quantile(levels)[:, 0]
    assert ((found - want).abs() / want.abs().clamp(min=1)).max() < 1e-9


def test_what_cannot_be_exported_is_told_in_words(regression, quick, tmp_path):
    student = bnn.BNN(nn.Linear(3, 1), bnn.priors.Normal(1.0), bnn.likelihoods.StudentT(0.5))
    posterior = quick(student, regression, bnn.MAP(epochs=1))
    with pytest.raises(ValueError, match=r"quantiles under StudentT.* quantiles=\(\)"):
        posterior.export(tmp_path / "a.pt2")
    with pytest.raises(ValueError, match=r"neither \.pt2 nor \.onnx"):
        posterior.export(tmp_path / "a.bin")
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        posterior.export(tmp_path / "a.pt2", quantiles=(0.5, 1.0))

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(3, 1)

        def forward(self, x):
            return self.out(x if len(x) < 100 else 2 * x)

    branching = bnn.BNN(Branches(), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(1.0))
    with pytest.raises(ValueError, match=r"Branches cannot be exported: .*number of rows.*Torch says"):
        quick(branching, regression, bnn.MAP(epochs=1)).export(tmp_path / "a.pt2", quantiles=())
    noisy = bnn.BNN(nn.Linear(3, 1), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(1.0), input_noise=0.1)
    with pytest.raises(ValueError, match="inputs of this model are uncertain"):
        quick(noisy, regression, bnn.MAP(epochs=1)).export(tmp_path / "a.pt2")
    assert not list(tmp_path.iterdir())


def test_the_file_holds_no_pickle_and_no_names_of_this_machine(model, regression, quick, tmp_path):
    path = quick(model, regression, bnn.MAP(epochs=1)).export(tmp_path / "a.pt2", quantiles=())
    with zipfile.ZipFile(path) as file:
        content = {name: file.read(name) for name in file.namelist()}
    for name, each in content.items():
        assert each[:2] != b"\x80\x02", f"{name} is a pickle"
        assert not zipfile.is_zipfile(name)
        assert b'"use_pickle": true' not in each
        assert str(Path(bnn.__file__).parent).encode() not in each, name
    metadata = json.loads(next(each for name, each in content.items() if name.endswith("metadata.json")))
    assert metadata["inputs"] == [{"name": "x", "shape": ["rows", 3], "dtype": "float32"}]
    assert metadata["likelihood"] == "Gaussian(scale=HalfCauchy(scale=1.0))" or "Gaussian" in metadata["likelihood"]


def people() -> tuple[pd.DataFrame, torch.Tensor]:
    """Numbers with a hole, categories with a hole; and the same as the file takes it."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"town": np.array(["a", "b", "c"])[np.arange(30) % 3], "age": rng.normal(40, 10, 30)})
    frame["income"] = rng.lognormal(3, 1, 30)
    frame.loc[4, "age"] = np.nan
    frame.loc[7, "town"] = None
    codes = frame["town"].map({"a": 0.0, "b": 1.0, "c": 2.0})
    table = np.column_stack([codes, frame["age"], frame["income"]]).astype(float)
    return frame, torch.tensor(table, dtype=torch.float64)


@pytest.mark.parametrize("encoding", ["onehot", pytest.param("embedding", marks=pytest.mark.slow)])
def test_an_estimators_file_takes_the_table_and_answers_in_the_targets_units(encoding, tmp_path):
    frame, table = people()
    y = 1e5 + 2e4 * np.sin(np.arange(30))
    method = bnn.Ensemble(members=2, of=bnn.MAP(epochs=3)) if encoding == "embedding" else bnn.MeanField(epochs=3)
    regressor = bnn.BayesianRegressor(hidden=(4,), method=method, draws=None if encoding == "embedding" else 5)
    regressor.set_params(encoding=encoding, compile="eager").fit(frame, y)
    path = regressor.export(tmp_path / "a.pt2", quantiles=LEVELS if encoding == "onehot" else ())
    files = {"metadata.json": ""}
    module = torch.export.load(path, extra_files=files).module()
    same(module(table), regressor.predict_distribution(frame))
    columns = json.loads(files["metadata.json"])["columns"]
    assert [column["name"] for column in columns] == ["town", "age", "income"]
    assert columns[0]["levels"] == ["a", "b", "c"]
    new = frame.head(1).assign(town="nowhere")
    with pytest.warns(UserWarning, match="nowhere"):
        prediction = regressor.predict_distribution(new)
    row = table[:1].clone()
    row[0, 0] = -1
    same(module(row), prediction)
    row[0, 1] = torch.inf  # which the estimator refuses
    assert module(row)["mean"].isnan().all()


@pytest.mark.slow
def test_an_estimator_of_a_linearised_network_goes_whole(tmp_path):
    """What ``method="auto"`` takes for larger tables: Laplace, of which the file has the average over all weights."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2))
    regressor = bnn.BayesianRegressor(hidden=(4,), method=bnn.Laplace(of=bnn.MAP(epochs=3)), compile="eager")
    regressor.fit(x, 1e3 * x[:, 0] + rng.normal(size=40))
    assert regressor.posterior_.linear is not None
    module = torch.export.load(regressor.export(tmp_path / "a.pt2", quantiles=LEVELS)).module()
    for rows in (1, 7, 40):
        same(module(torch.tensor(x[:rows])), regressor.predict_distribution(x[:rows]))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_likelihood_goes_into_a_file_or_is_refused_in_words(name, quick, tmp_path):
    """Moments and probabilities as `predict` has them, and quantiles where the file can hold them."""
    line = TABLE[name]
    x = torch.randn(20, 2)
    posterior = quick(model_of(line), (x, line.targets(line.rows(20, torch.float32))), bnn.MAP(epochs=1))
    refused = {"truncated": r"not in closed form.*bnn\.distil", "ordinal": "any number of rows"}.get(name.split(",")[0])
    if refused is not None:
        with pytest.raises(ValueError, match=refused):
            posterior.export(tmp_path / "a.pt2", quantiles=())
        return
    module = torch.export.load(posterior.export(tmp_path / "a.pt2", quantiles=())).module()
    for rows in (1, 7):
        new = torch.randn(rows, 2)
        same(module(new), posterior.predict(new))


def test_a_classifiers_file_gives_a_probability_a_class(tmp_path):
    frame, table = people()
    y = np.array(["no", "yes"])[np.arange(30) % 2]
    classifier = bnn.BayesianClassifier(hidden=(4,), method=bnn.MAP(epochs=2), compile="eager").fit(frame, y)
    path = classifier.export(tmp_path / "a.pt2")
    files = {"metadata.json": ""}
    found = torch.export.load(path, extra_files=files).module()(table)
    assert np.allclose(found["probabilities"].numpy(), classifier.predict_proba(frame), atol=1e-6)
    assert json.loads(files["metadata.json"])["classes"] == ["no", "yes"]


@pytest.mark.slow
def test_onnx_gives_the_same_numbers(model, regression, quick, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the ONNX file is read by onnxruntime")
    pytest.importorskip("onnxscript", reason="torch writes ONNX with onnxscript")
    posterior = quick(model, regression, bnn.Ensemble(members=3, of=bnn.MAP(epochs=1)))
    path = posterior.export(tmp_path / "a.onnx", quantiles=(0.05, 0.5, 0.95))
    session = onnxruntime.InferenceSession(path)
    for rows in ROWS:
        x = torch.randn(rows, 3)
        names = [output.name for output in session.get_outputs()]
        values = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        same({n: torch.tensor(v) for n, v in zip(names, values, strict=True)}, posterior.predict(x))


@pytest.mark.parametrize(
    "classes", [pytest.param(False, id="numbers"), pytest.param(True, id="classes", marks=pytest.mark.slow)]
)
def test_a_student_comes_near_its_teacher_and_can_be_exported(classes, regression, classification, quick, tmp_path):
    if classes:
        posterior = quick(classification_model(), classification, bnn.Ensemble(members=3, of=bnn.MAP(epochs=30)))
    else:
        posterior = quick(regression_model(), regression, bnn.Ensemble(members=3, of=bnn.MAP(epochs=30)))
    x = torch.randn(400, 3)
    distilled = bnn.distil(
        posterior, x, nn.Sequential(nn.Linear(3, 30), nn.Tanh(), nn.Linear(30, 4 if classes else 2)), epochs=60
    )
    untrained = bnn.distil(posterior, x, nn.Linear(3, 4 if classes else 2), epochs=1, lr=1e-6)
    assert distilled.rows == 80
    assert distilled.kl < 0.02 < untrained.kl
    new = torch.randn(50, 3)
    found, teacher = distilled.net(new), posterior.predict(new)
    if classes:
        assert (found["probabilities"] - teacher.probs).abs().mean() < 0.02
    else:
        assert found["sd"].shape == teacher.std.shape
        assert ((found["mean"] - teacher.mean) / teacher.std).square().mean().sqrt() < 0.2
    program = torch.export.export(distilled.net, (new,), dynamic_shapes={"args": ({0: torch.export.Dim("n")},)})
    for name, value in program.module()(x).items():
        assert torch.allclose(value, distilled.net(x)[name], atol=1e-6)


def test_a_student_that_cannot_learn_is_told_in_words(model, regression, quick):
    posterior = quick(model, regression, bnn.MAP(epochs=1))
    with pytest.raises(ValueError, match=r"\(n, 2\) is right"):
        bnn.distil(posterior, torch.randn(20, 3), nn.Linear(3, 1))
    with pytest.raises(ValueError, match="leaves none"):
        bnn.distil(posterior, torch.randn(2, 3))
