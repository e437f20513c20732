"""What papers report of LeNet-5 on MNIST, from ``published_classification.csv`` in the data folder, beside ours."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Any

from frame import Study
from tables import Table

PUBLISHED = "published_classification.csv"
#: Our methods by the names of google/uncertainty-baselines, baselines/mnist.
_SAME = {
    "Deterministic": "a member of the ensemble",
    "Ensemble (10)": "ensemble",
    "Mean-field VI": "mean field",
    "Refined VI": "",
}


def _published(study: Study[Any]) -> list[dict[str, str]]:
    path = study.file(PUBLISHED)
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["dataset"].startswith("MNIST") and row["verified"] == "yes"]


def accuracy_rows(study: Study[Any], ours: Sequence[dict[str, Any]]) -> Table:
    """Theirs, and below each ours by the same method, where it was run."""
    rows = []
    own = {row["method"]: row for row in ours if row["net"] == "lenet"}
    for theirs, same in _SAME.items():
        read = {
            row["metric"]: float(row["mean"])
            for row in _published(study)
            if (row["dataset"], row["method"]) == ("MNIST", theirs)
        }
        error = {"error": 100 - read["accuracy_pct"]} if "accuracy_pct" in read else {}
        rows.append({"method": f"published: {theirs}", **error, **read})
        if same in own:
            rows.append({**own[same], "method": f"here: {same}"})
    columns = {
        "error": ("test error, %", ".2f"),
        "nll": ("−log-density, nats", ".4f"),
        "ece": ("calibration error", ".4f"),
    }
    note = (
        "Published by google/uncertainty-baselines, whose nets see all 60,000 training rows, without shifts, and whose "
        "ensemble has ten members; ours see 50,000, and settings say the rest."
    )
    return Table("LeNet-5 beside published figures", {"method": ("", ""), **columns}, rows, note)


def stranger_rows(study: Study[Any]) -> Table:
    """Published AUROC: of sets of strangers that are not at hand here, and so beside, not against, ours."""
    rows = [
        {
            "method": row["method"],
            "strangers": row["dataset"].removeprefix("MNIST vs "),
            "auroc": float(row["mean"]) / 100,
        }
        for row in _published(study)
        if row["metric"] == "ood_auroc_pct" and "swapped" not in row["note"]
    ]
    columns = {"method": ("method", ""), "strangers": ("images", ""), "auroc": ("AUROC", ".3f")}
    note = (
        "Daxberger et al. 2021, arXiv:2106.14806, table 3, LeNet, by confidence; LA: last-layer Laplace, LA*: its best "
        "variant. Rows that look swapped in the source are left out. Their strangers are other sets than ours."
    )
    return Table("strangers in a paper", columns, rows, note)
