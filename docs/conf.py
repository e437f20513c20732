"""How Sphinx makes the site: `make docs`. The sources' root is the repository, so that pages may link to its files."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

import bnn

project = "bnn"
author = "The bnn developers"
copyright = "the bnn developers"
release = version = bnn.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
root_doc = "docs/index"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/**"]
exclude_patterns = ["docs/_build/**", "**/*.py", "**/*.json"]
nitpicky = False
suppress_warnings: list[str] = []

# Formulas are GitHub's dialect, so that a page reads there and here.
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4
myst_fence_as_directive = ["math"]

# What stands in single backquotes in a docstring is a name of Python's where it can be found, and code where not.
default_role = "py:obj"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
# What scikit-learn adds to every estimator refers to pages of its own.
_ADDED = [f"set_{name}_request" for name in ("fit", "partial_fit", "predict", "predict_proba", "score")]
autodoc_default_options = {"members": True, "show-inheritance": True, "exclude-members": ", ".join(_ADDED)}
napoleon_numpy_docstring = False

# Formulas as MathML, which browsers draw by themselves: MathJax would be fetched from elsewhere at each reading.
html_math_renderer = "mathml"

html_theme = "furo"
html_title = f"bnn {release}"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

#: The menu: captions, and under each the pages of `docs/` in the order of reading. Sphinx warns of a page that is in
#: none, and `make docs` fails.
MENU = {
    "Start": ["../README", "start", "estimators", "command_line", "mathematics", "report", "coming_from"],
    "Choose": ["methods/which", "priors", "likelihoods", "networks", "prior_predictive", "input_noise"],
    "Methods": [
        "methods/gaussian",
        "methods/flow",
        "methods/ivon",
        "methods/laplace",
        "methods/last_layer",
        "methods/ensemble",
        "methods/swag",
        "methods/dropout",
        "methods/mcmc",
        "methods/sgmcmc",
        "methods/svgd",
        "methods/stream",
    ],
    "Judge": ["scores", "conformal", "diagnostics", "comparison", "gallery"],
    "Keep and ship": ["files", "checkpoints", "scaling", "export", "ecosystem", "extending"],
    "Experiments": [
        "experiments/index",
        "experiments/weight_decay",
        "experiments/prior_predictive",
        "experiments/posterior_fidelity",
        "experiments/toy_regression",
        "experiments/uci",
        "experiments/input_noise",
        "experiments/continual",
        "experiments/bandit",
        "experiments/active_learning",
        "experiments/conformal",
        "experiments/mnist",
        "experiments/calibration_under_shift",
        "experiments/scaling",
    ],
    "Reference": ["api/index", "../CHANGELOG"],
    "Design": [
        "design/architecture",
        "design/capture",
        "design/sampling",
        "design/prediction",
        "benchmarks",
        "design/performance",
        "design/uncertain_inputs",
        "../CONTRIBUTING",
    ],
}

#: The modules whose public names a page of `docs/api/` lists.
API = {
    "model": ["bnn.model"],
    "inference": ["bnn.inference", "bnn.checkpoint", "bnn.history"],
    "posterior": ["bnn.posterior", "bnn.prediction", "bnn.prior_predictive", "bnn.continual"],
    "approximations": ["bnn.approximations"],
    "priors": ["bnn.priors"],
    "likelihoods": ["bnn.likelihoods"],
    "nets": ["bnn.nets"],
    "analysis": ["bnn.analysis"],
    "plots": ["bnn.plots", "bnn.reporting"],
    "estimators": ["bnn.estimators"],
    "files": ["bnn.files", "bnn.streams", "bnn.distributed", "bnn.export", "bnn.loggers"],
}


def setup(app: Any) -> None:
    """Have what GitHub would not render put under the pages: the menu, and the docstrings."""
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
    app.connect("source-read", _complete)
    app.connect("autodoc-process-docstring", _as_rst)
    app.connect("missing-reference", _by_public_name)


def _inline(writer: Any, node: Any) -> None:
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _display(writer: Any, node: Any) -> None:
    writer.body.append(convert(node.astext(), display="block"))
    raise nodes.SkipNode


def _complete(app: Any, name: str, source: list[str]) -> None:
    if name == root_doc:
        source[0] += "".join(_menu(caption, pages) for caption, pages in MENU.items())
    elif name == "docs/api/index":
        source[0] += _menu("", list(API))
    elif name.startswith("docs/api/"):
        source[0] += "".join(f"\n```{{eval-rst}}\n.. automodule:: {module}\n```\n" for module in API[name[9:]])


def _menu(caption: str, pages: list[str]) -> str:
    named = f":caption: {caption}\n" if caption else ""
    return "\n\n```{toctree}\n:hidden:\n" + named + "\n" + "\n".join(pages) + "\n```\n"


def _as_rst(app: Any, what: str, name: str, it: Any, options: Any, lines: list[str]) -> None:
    """Bars are absolute values, which reST would take for substitutions; papers on arXiv become links."""
    for i, line in enumerate(lines):
        parts = line.split("``")
        parts[::2] = [re.sub(r"arXiv:(\d{4}\.\d{4,5})", _LINK, part.replace("|", "\\|")) for part in parts[::2]]
        lines[i] = "``".join(parts)


_LINK = r"`arXiv:\1 <https://arxiv.org/abs/\1>`__"


def _by_public_name(app: Any, env: Any, node: Any, content: Any) -> Any:
    """`bnn.fit` leads to where that name is told, under the module that defines it."""
    target = node.get("reftarget", "")
    package, _, name = target.partition(".")
    home = bnn._HOME.get(name.partition(".")[0]) if package == "bnn" else None
    if home is None or target.startswith(f"{home}."):
        return None
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", f"{home}.{name}", node, content)
