"""The site of the documentation: every page is in its menu, and Sphinx builds it without a warning."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def setting(name: str) -> Any:
    """A constant of ``docs/conf.py``, read without what only a build needs."""
    for node in ast.parse((DOCS / "conf.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"docs/conf.py has no {name}")


def test_the_menu_has_every_page_once():
    listed = [page for pages in setting("MENU").values() for page in pages]
    listed += [f"api/{page}" for page in setting("API")]
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")}
    pages = {page for page in pages if not page.startswith("_build/")}
    assert len(listed) == len(set(listed))
    assert {page for page in listed if not page.startswith("../")} == pages - {"index"}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("sphinx") is None, reason="Sphinx comes with `make docs`: pip install -e '.[docs]'")
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", ".", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "Infer a model" in (tmp_path / "docs" / "api" / "inference.html").read_text(encoding="utf-8")
