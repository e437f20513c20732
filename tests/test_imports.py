"""Imports run one way, and `import bnn` is light."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "bnn"
TABLE = ROOT / "docs" / "design" / "architecture.md"

HEAVY = (
    "torch",
    "pyro",
    "matplotlib",
    "arviz",
    "arviz_base",
    "arviz_stats",
    "arviz_plots",
    "sklearn",
    "xarray",
    "numpy",
)
#: Seconds that `import bnn` may add to `import torch, pyro`.
LIMIT = 0.2
#: Of the names that a fit needs, which are all methods: 0.11 to 0.17 s.
FIT_LIMIT = 0.4


def order() -> list[str]:
    """The modules and packages directly under ``bnn``, in the order of the table of the architecture."""
    return re.findall(r"^\| `bnn/(\w+)(?:\.py|/)` \|", TABLE.read_text(encoding="utf-8"), re.MULTILINE)


def imports_at_the_top(source: str, package: str) -> Iterator[str]:
    """Absolute names of the modules of ``bnn`` that importing this source imports, the module of each name included.

    What stands in functions runs later, and what stands under ``if TYPE_CHECKING`` never.
    """

    def visit(nodes: list[ast.stmt]) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                yield from visit(node.orelse)
            elif isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                start = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
                base = ".".join(part for part in (start, node.module) if part)
                # `from bnn import priors` is an import of bnn.priors
                yield from (f"{base}.{alias.name}" if base == "bnn" else base for alias in node.names)
            else:
                for block in ("body", "orelse", "finalbody"):
                    yield from visit(getattr(node, block, []))
                for handler in getattr(node, "handlers", []):
                    yield from visit(handler.body)

    yield from (name for name in visit(ast.parse(source).body) if name == "bnn" or name.startswith("bnn."))


def violations(module: str, source: str, ranks: list[str]) -> list[str]:
    """Imports of a module (a path under bnn, such as ``inference/loop``) that do not point up the table."""
    own = module.split("/")[0]
    package = ".".join(["bnn", *module.split("/")[:-1]])
    wrong = []
    for name in imports_at_the_top(source, package):
        target = name.split(".")[1] if "." in name else "__init__"
        inside = target == own and "/" in module
        if not inside and (target not in ranks or ranks.index(target) >= ranks.index(own)):
            wrong.append(name)
    return wrong


MODULES = {str(path.relative_to(PACKAGE).with_suffix("")): path for path in sorted(PACKAGE.rglob("*.py"))}


def test_the_table_names_every_module_and_no_other():
    have = {name.split("/")[0] for name in MODULES}
    assert sorted(order()) == sorted(have), f"the rows of {TABLE.relative_to(ROOT)} and the modules of bnn/ differ"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_up_the_table(module):
    wrong = violations(module, MODULES[module].read_text(encoding="utf-8"), order())
    assert not wrong, f"bnn/{module}.py imports {wrong}, which {TABLE.relative_to(ROOT)} puts below it"


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("priors", "from bnn.distributions import cast", []),
        ("priors", "from bnn.model import BNN", ["bnn.model"]),
        ("priors", "import bnn.model", ["bnn.model"]),
        ("priors", "from bnn import model", ["bnn.model"]),
        ("priors", "import bnn", ["bnn"]),  # from which every public name is to be had
        ("cli", "import bnn", []),
        ("priors", "from .model import BNN", ["bnn.model"]),
        ("priors", "try:\n    import bnn.model\nexcept ImportError:\n    pass", ["bnn.model"]),
        ("priors", "class A:\n    from bnn.model import BNN", ["bnn.model"]),
        ("priors", "def f():\n    from bnn.model import BNN", []),
        ("priors", "if TYPE_CHECKING:\n    from bnn.model import BNN", []),
        ("inference/loop", "from bnn.inference.base import Run", []),
        ("inference/loop", "from .base import Run", []),
        ("inference/loop", "from ..plots import style", ["bnn.plots"]),
        ("posterior", "from bnn.inference.base import Run", ["bnn.inference.base"]),
    ],
)
def test_an_import_that_points_down_is_found(module, source, wrong):
    assert violations(module, source, order()) == wrong


def python(code: str, **env: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=os.environ | env)
    return done.stdout


def test_import_bnn_imports_nothing_heavy():
    found = python(f"import sys, bnn; print(*[name for name in {HEAVY!r} if name in sys.modules])").split()
    assert not found


def test_public_names_are_found_when_they_are_used():
    assert (
        python("import bnn; print(*[name for name in bnn.__all__ if getattr(bnn, name, None) is None])").split() == []
    )
    assert python("import bnn; print(*[name for name in bnn.__all__ if name not in dir(bnn)])").split() == []


def test_import_bnn_adds_little_to_torch_and_pyro(tmp_path):
    """Processor time, so that what else runs on the machine does not count; the least of three processes.

    The names that a fit needs are measured too: an import that only waits would be no gain. Bytecode is kept, as it
    is where the package is installed: without it (``PYTHONDONTWRITEBYTECODE``) compiling takes more than half.
    """
    kept = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    code = "import time, torch, pyro; start = time.process_time(); import bnn; first = time.process_time() - start; "
    code += "bnn.BNN, bnn.priors, bnn.likelihoods, bnn.fit, bnn.Posterior; print(first, time.process_time() - start)"
    python(code, **kept)  # writes the bytecode
    alone, used = zip(*(map(float, python(code, **kept).split()) for _ in range(3)), strict=True)
    assert min(alone) <= LIMIT, f"import bnn took {alone} s after torch and pyro"
    assert min(used) <= FIT_LIMIT, f"the names of a fit took {used} s after torch and pyro"
