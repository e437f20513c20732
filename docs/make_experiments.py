"""Put what experiments found into their pages: ``python docs/make_experiments.py weight_decay bandit``.

From ``runs/experiments/NAME/`` it takes the record, ``NAME.json``, to ``docs/experiments/``, and the figures to
``docs/images/experiments/NAME-FIGURE.png``; in the page, ``docs/experiments/NAME.md``, it replaces what stands between
the lines ``<!-- tables -->`` and ``<!-- end of tables -->``.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "experiments"
IMAGES = ROOT / "docs" / "images" / "experiments"
TABLES = re.compile(r"(?<=<!-- tables -->\n).*?(?=<!-- end of tables -->)", re.DOTALL)


def tables(record: dict[str, Any]) -> str:
    """What stands between the marks of a page: how the run went, and its tables."""
    machine, minutes = record["machine"], record["seconds"] / 60
    how = (
        f"`{record['command']}`, {minutes:.0f} minutes in all on {machine['threads']} of {machine['cores']} cores "
        f"(bnn {record['versions']['bnn']}, torch {record['versions']['torch']}):"
    )
    parts = [how, *(f"**{name}**\n\n{text}" for name, text in record["tables"].items())]
    return "\n" + "\n\n".join(parts) + "\n\n"


def publish(name: str, run: Path) -> None:
    record = json.loads((run / f"{name}.json").read_text(encoding="utf-8"))
    page = PAGES / f"{name}.md"
    text = page.read_text(encoding="utf-8")
    if not TABLES.search(text):
        raise SystemExit(f"{page} has no lines <!-- tables --> and <!-- end of tables --> between which tables go")
    page.write_text(TABLES.sub(lambda _: tables(record), text), encoding="utf-8")
    shutil.copy(run / f"{name}.json", PAGES / f"{name}.json")
    IMAGES.mkdir(parents=True, exist_ok=True)
    for figure in run.glob("*.png"):
        shutil.copy(figure, IMAGES / f"{name}-{figure.name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "experiments")
    arguments = parser.parse_args()
    for name in arguments.names:
        publish(name, arguments.runs / name)


if __name__ == "__main__":
    main()
