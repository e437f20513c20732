"""Prediction: 1 to 1000 draws at 1 to 10,000 rows."""

from __future__ import annotations

from benchmarks.frame import Contender, Family, Reach, Work
from benchmarks.problems import PROBLEMS

PASSES, READING = "plain forward passes", "reading the draws once"


def _work(problem: str, draws: int, rows: int) -> Work:
    own = {"problem": problem, "draws": draws, "rows": rows}
    contenders = [
        Contender(PASSES, "predictions:forwards", own, role="limit"),
        Contender("predict", "predictions:predict", own, role="own"),
    ]
    net = PROBLEMS[problem].title.split(",")[0]
    title = f"{net}, {draws:,} draws, {rows:,} rows"
    reaches = []
    if rows == 1 and problem == "mnist":
        contenders.append(Contender(READING, "predictions:reading", own, role="limit"))
        if draws == 100:
            reaches.append(Reach(f"predict, {title} / bytes over bandwidth", "predict", (READING,), 2.0))
    if draws == 100 and rows == 1000:
        reaches.append(Reach(f"predict, {title} / 100 plain forward passes", "predict", (PASSES,), 1.15))
    name = f"{problem}-{draws}-{rows}"
    return Work(name, title, "ms", tuple(contenders), rounds=9, reaches=tuple(reaches))


_GRID = [(draws, rows) for draws in (1, 10, 100, 1000) for rows in (1, 100, 10_000)]

FAMILY = Family(
    "predict",
    "Prediction with draws in hand",
    """As many plain forward passes of the net as there are draws, in a Python loop without gradients, against
`posterior.predict(x, draws)`. At one row a forward pass is little but reading the weights: there the sum
over all draws, which reads every byte once, is the other limit.""",
    (
        *(_work(name, 100, 1000) for name in ("tiny", "small", "mnist", "conv")),
        *(_work("tiny", draws, rows) for draws, rows in _GRID),
        *(_work("mnist", draws, rows) for draws, rows in _GRID if draws * rows <= 100_000),
    ),
)
