"""Run folders of any origin: refused in a sentence, or harmless; nothing in them is ever executed."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import as_schema_1, reseal

import bnn
from bnn.files import MANIFEST, Manifest
from bnn.files.manifest import ESTIMATOR, JSON, TENSORS, _checksum

ROWS = np.linspace(-2, 2, 24).reshape(12, 2)
REFUSED = (ValueError, FileNotFoundError, OSError)
SEEN: list[str] = []


def watch(event: str, args: tuple) -> None:
    """Whatever is unpickled, or started, is on record."""
    if event in ("pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn"):
        SEEN.append(f"{event} {args}")


sys.addaudithook(watch)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    """An estimator with everything: settings with tensors, a posterior, a file that was added."""
    prior = bnn.priors.Normal(torch.tensor(1.5))
    made = bnn.BayesianRegressor((2,), prior=prior, method=bnn.MAP(epochs=2), compile="eager").fit(ROWS, ROWS.sum(1))
    folder = made.save(tmp_path_factory.mktemp("hostile") / "run")
    bnn.files.add_file(folder, "scores.json", b'{"rmse": 1.0}')
    return folder


@pytest.fixture
def folder(pristine, tmp_path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "run"))


@pytest.fixture(scope="module")
def expected(pristine) -> np.ndarray:
    return bnn.load(pristine).predict(ROWS)


@pytest.fixture(autouse=True)
def nothing_is_executed(tmp_path):
    SEEN.clear()
    yield
    assert SEEN == []
    assert not (tmp_path / "sprung").exists()


def outcome(folder: Path, expected: np.ndarray) -> str:
    """``"refused"``, ``"harmless"``, or what else loading has led to."""
    try:
        loaded = bnn.load(folder)
    except REFUSED as error:
        words = str(error)
        return "refused" if words and "\n" not in words and len(words) < 2000 else f"refused in words like {words!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    try:
        return "harmless" if np.array_equal(loaded.predict(ROWS), expected) else "other predictions"
    except ValueError:
        return "other predictions"  # of a negative scale, say


# ------------------------------------------------------------------------------------------------------------- pickles


class Trap:
    """Unpickling this would make a folder."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 5, "torch"])
@pytest.mark.parametrize("seal", [reseal, lambda _: None], ids=["checksums fit", "checksums do not"])
def test_a_pickle_in_the_place_of_each_file(seal, protocol, folder, expected, tmp_path):
    found = set()
    for name in sorted(path.name for path in folder.iterdir()):
        content = (folder / name).read_bytes()
        if protocol == "torch":
            torch.save(Trap(tmp_path / "sprung"), folder / name)
        else:
            (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung"), protocol=protocol))
        if name != MANIFEST:
            seal(folder)
        found.add((name, outcome(folder, expected)))
        (folder / name).write_bytes(content)
        reseal(folder)
    # Files that are for readers alone are not read.
    apart = {name for name, result in found if result == "harmless"}
    assert apart <= {"history.csv", "settings.json", "scores.json"}
    assert seal is reseal or not apart
    assert {result for _, result in found} <= {"refused", "harmless"}


def test_control_the_trap_works(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists()
    assert SEEN
    (tmp_path / "sprung").rmdir()
    SEEN.clear()


# ------------------------------------------------------------------------------------------------------- flipped bytes


def places(folder: Path) -> list[tuple[str, int]]:
    """Every byte of the JSON files and of the headers of the tensors."""
    found = []
    for path in sorted(folder.iterdir()):
        size = path.stat().st_size
        if path.suffix == ".safetensors":
            size = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        if path.suffix in (".json", ".safetensors"):
            found += [(path.name, i) for i in range(size)]
    return found


def others(folder: Path, num: int, rng: np.random.Generator) -> list[tuple[str, int]]:
    """Random bytes of all files."""
    files = sorted(folder.iterdir())
    sizes = np.array([path.stat().st_size for path in files])
    chosen = rng.choice(len(files), num, p=sizes / sizes.sum())
    return [(files[i].name, int(rng.integers(sizes[i]))) for i in chosen]


def after_flips(
    folder: Path, where: list[tuple[str, int]], expected: np.ndarray, seal: Callable[[Path], None] | None = None
) -> list[tuple[str, int, str]]:
    """What is neither refused nor harmless, with one byte at a time flipped, by one bit or all."""
    rng = np.random.default_rng(0)
    wrong = []
    for name, place in where:
        content = (folder / name).read_bytes()
        damaged = bytearray(content)
        damaged[place] ^= 255 if rng.random() < 0.3 else 1 << int(rng.integers(8))
        (folder / name).write_bytes(damaged)
        if seal is not None:
            seal(folder)
        result = outcome(folder, expected)
        if result not in ("refused", "harmless"):
            wrong.append((name, place, result))
        (folder / name).write_bytes(content)
    if seal is not None:
        seal(folder)
    assert outcome(folder, expected) == "harmless"
    return wrong


def test_flipped_bytes(folder, expected):
    """A sample; `test_every_byte` takes all."""
    rng = np.random.default_rng(1)
    every = places(folder)
    where = [every[i] for i in rng.choice(len(every), 300, replace=False)] + others(folder, 100, rng)
    assert after_flips(folder, where, expected) == []


@pytest.mark.slow
def test_every_byte(folder, expected):
    assert after_flips(folder, places(folder), expected) == []
    assert after_flips(folder, others(folder, 2000, np.random.default_rng(2)), expected) == []


def test_control_without_checksums(folder, expected, patch_line):
    """Where the comparison is off, damaged numbers pass, and the check says so."""
    patch_line(Manifest, "check", "_entry(path).sha256 != entry.sha256", "False")
    size = (folder / TENSORS).stat().st_size
    assert after_flips(folder, [(TENSORS, size - k) for k in range(1, 300, 4)], expected)


def test_a_checksum_says_which_file(folder):
    content = bytearray((folder / TENSORS).read_bytes())
    content[-1] ^= 1
    (folder / TENSORS).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{TENSORS} is damaged: its checksum"):
        bnn.load(folder)


def flips_that_fit(folder: Path, expected: np.ndarray, where: list[tuple[str, int]]) -> list[tuple[str, int, str]]:
    """With checksums that were made again: other numbers are what somebody wanted to say; a crash never is."""
    where = [(name, place) for name, place in where if name != MANIFEST]
    return [line for line in after_flips(folder, where, expected, reseal) if line[2] != "other predictions"]


def test_flipped_bytes_with_checksums_that_fit(folder, expected):
    rng = np.random.default_rng(3)
    every = [place for place in places(folder) if place[0] in (JSON, ESTIMATOR, TENSORS)]
    assert flips_that_fit(folder, expected, [every[i] for i in rng.choice(len(every), 100, replace=False)]) == []


@pytest.mark.slow
def test_every_other_byte_with_checksums_that_fit(folder, expected):
    every = [place for place in places(folder) if place[0] in (JSON, ESTIMATOR, TENSORS)]
    assert flips_that_fit(folder, expected, every[::2]) == []


# --------------------------------------------------------------------------------------------------------------- paths


NAMES = [
    "../run/scores.json",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "C:\\x",
    "nul",
    "con.txt",
    "",
    ".",
    "..",
    "a\0b",
    ".hidden",
]
NAMES += ["x" * 300, "scores.json.", "é", "a:b", "~", "$HOME", "%2e%2e", "a b", "-rf", "a\nb"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_in_the_manifest(name, folder, expected):
    record = json.loads((folder / MANIFEST).read_text())
    record.pop("checksum")
    record["files"][name] = record["files"]["scores.json"]
    (folder / MANIFEST).write_text(json.dumps({**record, "checksum": _checksum(record)}))
    with pytest.raises(ValueError, match="no name of a file in a run folder"):
        bnn.load(folder)
    with pytest.raises(ValueError, match="no name of a file in a run folder"):
        bnn.files.add_file(folder, name, b"")
    with pytest.raises(ValueError, match="no name of a file in a run folder"):
        bnn.files.read_file(folder, name)


@pytest.mark.parametrize("name", [JSON, TENSORS, ESTIMATOR, "scores.json", MANIFEST])
@pytest.mark.parametrize("kind", ["link", "link out", "device", "pipe", "folder", "nothing"])
def test_what_is_no_file(kind, name, folder, expected, tmp_path):
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if kind.startswith("link"):
        place = (tmp_path if kind == "link out" else folder) / "other"
        place.write_bytes(content)
        path.symlink_to(place)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    began = time.monotonic()
    assert outcome(folder, expected) == "refused"
    assert time.monotonic() - began < 5


def test_huge_files(folder, expected, tmp_path):
    """A file of a terabyte, of which nothing is stored, is told by its size and not read."""
    for name in (JSON, TENSORS, MANIFEST):
        content = (folder / name).read_bytes()
        os.truncate(folder / name, 2**40)
        assert outcome(folder, expected) == "refused"
        (folder / name).write_bytes(content)


# ---------------------------------------------------------------------------------------------------------- JSON bombs


BOMBS = {
    "deep": "[" * 100_000,
    "deep and closed": '{"schema": ' + "[" * 400 + "]" * 400 + "}",
    "digits": '{"schema": ' + "1" * 5000 + "}",
    "large number": '{"schema": 1e999}',
    "twice": '{"schema": 2, "schema": 2}',
    "not a number": '{"schema": NaN}',
    "long": "[" + "0," * 500_000 + "0]",
    "no text": b"\xff\xfe\x00{",
    "surrogate": '{"schema": "\\ud800"}',
    "zero": "\0" * 1000,
}


@pytest.mark.parametrize("name", [JSON, ESTIMATOR, MANIFEST])
@pytest.mark.parametrize("bomb", BOMBS)
def test_json_bombs(bomb, name, folder, expected):
    content = BOMBS[bomb]
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if name != MANIFEST:
        reseal(folder)
    assert outcome(folder, expected) == "refused"


def test_json_beyond_the_limit(folder, expected, monkeypatch):
    monkeypatch.setattr("bnn.files.strict.LARGEST_JSON", 100)
    assert outcome(folder, expected) == "refused"


# ------------------------------------------------------------------------------------ what says other things, and fits


def kind(name: str, **given: object) -> dict:
    return {"type": name, "with": given}


SPRING = "__import__('os').mkdir('sprung')"
CONTENT = {
    "a wide network": (JSON, ["model", "network", "arguments", "hidden"], [10**9, 10**9]),
    "a wider network": (JSON, ["model", "network", "arguments", "hidden"], [10**30]),
    "a deep network": (JSON, ["model", "network", "arguments", "hidden"], [1] * 100_000),
    "many blocks": (JSON, ["model", "network"], {"net": "resnet", "arguments": {"blocks": 10**9}}),
    "many layers": (JSON, ["model", "network"], {"net": "lstm", "arguments": {"inputs": 2, "layers": 10**9}}),
    "another network": (JSON, ["model", "network"], {"net": "lenet", "arguments": {}}),
    "a function for a network": (JSON, ["model", "network", "net"], "os.mkdir"),
    "a recipe of code": (JSON, ["model", "network"], SPRING),
    "no network": (JSON, ["model", "network"], None),
    "a wrong width": (JSON, ["model", "network", "arguments", "inputs"], 3),
    "an activation of code": (JSON, ["model", "network", "arguments", "activation"], SPRING),
    "an unknown dtype": (JSON, ["model", "dtype"], "object"),
    "frozen others": (JSON, ["model", "frozen"], ["nothing"]),
    "a function for a prior": (JSON, ["model", "prior"], kind("os.mkdir", path="sprung")),
    "a user's prior": (JSON, ["model", "prior"], kind("priors.Function", fn=SPRING)),
    "an abstract prior": (JSON, ["model", "prior"], kind("priors.Prior")),
    "a dunder": (JSON, ["model", "prior"], kind("priors.__class__")),
    "a module for a prior": (JSON, ["model", "prior"], kind("priors.base.os.mkdir")),
    "a prior with code": (JSON, ["model", "prior"], kind("priors.Normal", scale=SPRING)),
    "a prior with other settings": (JSON, ["model", "prior"], kind("priors.Normal", colour="red")),
    "a negative scale": (JSON, ["model", "prior"], kind("priors.Normal", scale=-1.0)),
    "no prior": (JSON, ["model", "prior"], None),
    "a prior from a list": (JSON, ["model", "prior"], [1, 2]),
    "a tensor that is not there": (JSON, ["model", "prior"], kind("priors.Normal", scale={"tensor": "x"})),
    "a tensor of another shape": (
        JSON,
        ["model", "prior"],
        kind("priors.Normal", scale={"tensor": {"dtype": "float64", "shape": [10**12], "values": [1.0]}}),
    ),
    "a tensor that is ragged": (
        JSON,
        ["model", "prior"],
        kind("priors.Normal", scale={"tensor": {"dtype": "float64", "shape": [2], "values": [1.0, [2.0]]}}),
    ),
    "builtins": (JSON, ["model", "output"], {"name": "builtins.eval"}),
    "a loader of pickles": (JSON, ["model", "output"], {"name": "torch.load"}),
    "a partial": (JSON, ["model", "output"], {"partial": "os.mkdir", "with": {"path": "sprung"}}),
    "an output of code": (JSON, ["model", "output"], SPRING),
    "many grades": (JSON, ["model", "likelihood"], kind("likelihoods.Ordinal", grades=10**12)),
    "many outputs": (JSON, ["model", "likelihood"], kind("likelihoods.MultivariateGaussian", outputs=10**9)),
    "a negative number of grades": (JSON, ["model", "likelihood"], kind("likelihoods.Ordinal", grades=-5)),
    "another likelihood": (JSON, ["model", "likelihood"], kind("likelihoods.Bernoulli")),
    "a lost part": (JSON, ["model"], {"given": {}}),
    "no parts": (JSON, ["model"], []),
    "parts to be given": (JSON, ["model", "given"], {"prior": "x"}),
    "other sites": (JSON, ["sites"], {}),
    "shapes of rows": (JSON, ["input_shapes"], [[10**30]]),
    "another kind": (JSON, ["kind"], "guide"),
    "a class of a module": (ESTIMATOR, ["class"], "os.path"),
    "an abstract class": (ESTIMATOR, ["class"], "Estimator"),
    "a list": (ESTIMATOR, ["class"], ["BayesianRegressor"]),
    "a class that needs a module": (ESTIMATOR, ["class"], "BayesianModuleRegressor"),
    "a classifier": (ESTIMATOR, ["class"], "BayesianClassifier"),
    "another setting": (ESTIMATOR, ["settings", "colour"], 1),
    "a method of code": (ESTIMATOR, ["settings", "method"], kind("methods.Variational", guide={"name": "os.mkdir"})),
    "a setting of code": (ESTIMATOR, ["settings", "hidden"], SPRING),
    "an unknown dtype of inputs": (ESTIMATOR, ["settings", "dtype"], "complex128"),
    "an encoder of another type": (ESTIMATOR, ["encoder"], kind("priors.Normal")),
    "no encoder": (ESTIMATOR, ["encoder"], None),
    "columns that are none": (ESTIMATOR, ["encoder", "with", "columns"], {"tuple": [1, 2]}),
    "columns that are not there": (ESTIMATOR, ["encoder", "with", "used"], {"tuple": [0, 99]}),
    "a scale of 0": (ESTIMATOR, ["encoder", "with", "columns", "tuple", 0, "with", "scale"], 0.0),
    "a mean in words": (ESTIMATOR, ["encoder", "with", "columns", "tuple", 0, "with", "mean"], SPRING),
    "no features": (ESTIMATOR, ["features"], None),
    "names of others": (ESTIMATOR, ["feature_names"], ["a"]),
    "targets of another shape": (ESTIMATOR, ["targets", "mean"], [[0.0]]),
    "targets in words": (ESTIMATOR, ["targets", "scale"], SPRING),
    "a target scale of 0": (ESTIMATOR, ["targets", "scale"], 0.0),
    "a seed in words": (ESTIMATOR, ["seed"], SPRING),
}


#: Widths are for the next fit, which refuses a text; shapes of rows are for messages.
UNREAD = ("a setting of code", "shapes of rows")


@pytest.mark.parametrize("what", CONTENT)
def test_content_with_checksums_that_fit(what, folder, expected, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    name, where, value = CONTENT[what]
    record = json.loads((folder / name).read_text())
    inner = record
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    (folder / name).write_text(json.dumps(record))
    reseal(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    found = outcome(folder, expected)
    assert found == ("harmless" if what in UNREAD else "refused"), found
    assert time.monotonic() - began < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


@pytest.mark.parametrize("dtype", ["object", "<U999999999", "O", "datetime64", SPRING, None, ["int64"]], ids=repr)
def test_types_of_classes(dtype, tmp_path):
    made = bnn.BayesianClassifier((2,), method=bnn.MAP(epochs=1), compile="eager").fit(ROWS, np.arange(12) % 2)
    folder = made.save(tmp_path / "run")
    record = json.loads((folder / ESTIMATOR).read_text())
    record["targets"]["dtype"] = dtype
    (folder / ESTIMATOR).write_text(json.dumps(record))
    reseal(folder)
    if dtype == "object":
        assert list(bnn.load(folder).classes_) == [0, 1]
        return
    with pytest.raises(ValueError, match=r"damaged|classes"):
        bnn.load(folder)


def test_control_room_is_made_without_the_check(folder, expected, patch_line):
    """Without the comparison of sizes a network of the file's choice would be built."""
    import bnn.files.model as place

    patch_line(place, "_network", "if size > numbers:", "if False:")
    record = json.loads((folder / JSON).read_text())
    record["model"]["network"]["arguments"]["hidden"] = [1000, 1000]
    (folder / JSON).write_text(json.dumps(record))
    reseal(folder)
    with pytest.raises(ValueError, match="sites do not fit"):  # too late: it is there
        bnn.load(folder)


# -------------------------------------------------------------------------------------------------- headers of tensors


def header(**entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


HEADERS = {
    "more than the file": (2**63).to_bytes(8, "little") + b"{}",
    "a length of all": b"\xff" * 8,
    "a shape beyond the file": header(x={"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}),
    "a shape that overflows": header(x={"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 4]}) + b"\0" * 4,
    "a shape that does not fit": header(x={"dtype": "F32", "shape": [5], "data_offsets": [0, 4]}) + b"\0" * 4,
    "a negative shape": header(x={"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}) + b"\0" * 4,
    "offsets the other way": header(x={"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}) + b"\0" * 4,
    "a hole": header(x={"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}) + b"\0" * 8,
    "a dtype of code": header(x={"dtype": SPRING, "shape": [1], "data_offsets": [0, 4]}) + b"\0" * 4,
    "overlaps": header(
        x={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        y={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    )
    + b"\0" * 4,
}


@pytest.mark.parametrize("what", HEADERS)
@pytest.mark.parametrize("name", [TENSORS, "estimator.safetensors"])
def test_headers_of_tensors(name, what, folder, expected):
    (folder / name).write_bytes(HEADERS[what])
    reseal(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert outcome(folder, expected) == "refused"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


@pytest.mark.parametrize("what", HEADERS)
def test_headers_of_a_store_of_draws(what, tmp_path):
    model = bnn.BNN(bnn.nets.mlp(2, (), 1), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    (tmp_path / "draws").write_bytes(HEADERS[what])
    with pytest.raises(ValueError, match=r"damaged|no file of draws"):
        bnn.inference.read_store(tmp_path / "draws", model)


@pytest.mark.parametrize("bomb", BOMBS)
def test_json_bombs_in_a_store_of_draws(bomb, tmp_path):
    from safetensors.torch import save_file

    content = BOMBS[bomb]
    text = content if isinstance(content, str) else content.decode("latin1")
    tensors = {"counts": torch.ones(1, dtype=torch.int64), "vectors": torch.zeros(1, 2, 4)}
    save_file(tensors, tmp_path / "draws", {"format": "bnn draws 1", "record": text})
    model = bnn.BNN(bnn.nets.mlp(2, (), 1), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    with pytest.raises(ValueError, match="damaged"):
        bnn.inference.read_store(tmp_path / "draws", model)


# ------------------------------------------------------------------------------------------------------------ versions


@pytest.mark.parametrize("name", [MANIFEST, JSON, ESTIMATOR])
def test_newer_versions_are_refused_in_words(name, folder):
    record = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(record | {"schema": 3}))
    if name != MANIFEST:
        reseal(folder)
    with pytest.raises(ValueError, match=r"newer bnn \(schema 3, this one reads 2\): upgrade"):
        bnn.load(folder)


def test_flipped_bytes_of_a_folder_of_the_first_version(tmp_path):
    """It has no checksums: what is not refused says something else, and is executed no more than before."""
    x = torch.as_tensor(ROWS, dtype=torch.float32)
    model = bnn.BNN(bnn.nets.mlp(2, (2,), 1), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    posterior = bnn.fit(model, (x, x[:, :1]), bnn.MAP(epochs=1), compile="eager", progress=False)
    folder = as_schema_1(posterior.save(tmp_path / "run"))
    rng = np.random.default_rng(0)
    every = places(folder)
    for i in rng.choice(len(every), 60, replace=False):
        name, place = every[i]
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(
            content[:place] + bytes([content[place] ^ 1 << int(rng.integers(8))]) + content[place + 1 :]
        )
        with contextlib.suppress(*REFUSED):
            bnn.load(folder, model).predict(x)
        (folder / name).write_bytes(content)
