"""What mnist.py asks of a posterior."""

from __future__ import annotations

import functools
from typing import Any

import torch
from images import SHIFTS, Images, Parts, digits, strangers
from mnist_setup import Config
from tables import with_error
from torch import Tensor

import bnn
from bnn import analysis
from bnn.approximations import Gaussian


def scored(prediction: bnn.Prediction, y: Tensor) -> dict[str, float]:
    """Error in percent, negative log-density in nats, calibration error; standard errors over the rows."""
    accuracy = analysis.accuracy(prediction, y)
    found = {"error": 100 * (1 - accuracy.mean), "error_se": 100 * accuracy.standard_error}
    for name, score in (("nll", analysis.nll), ("ece", analysis.expected_calibration_error)):
        value = score(prediction, y)
        found |= {name: value.mean, f"{name}_se": value.standard_error}
    return found


def evaluated(config: Config, posterior: bnn.Posterior, parts: Parts) -> dict[str, Any]:
    """Everything that is asked of a posterior but for what can be taken out of it."""
    draws = posterior.draws(posterior.num_draws or config.draws)
    predict = functools.partial(posterior.predict, draws=draws)
    inside = predict(parts.test.x)
    few = parts.test.rows(slice(config.shift_rows))
    found: dict[str, Any] = {
        "parameters": sum(p.numel() for p in posterior.model.net.parameters()),
        "validation": scored(predict(parts.validation.x), parts.validation.y),
        "test": scored(inside, parts.test.y),
        "strangers": {},
        "shifts": [],
    }
    if posterior.num_draws is not None and posterior.num_draws > 1:
        outputs = inside.outputs.unsqueeze(1)
        each = [scored(bnn.Prediction(inside.likelihood, own, {}), parts.test.y) for own in outputs]
        found["members"] = {
            k: v for key in ("error", "nll", "ece") for k, v in with_error(key, [m[key] for m in each]).items()
        }
    outside = strangers(few, config.seed)
    if config.source == "mnist":
        outside["other digits"] = digits(size=28).train.x
    for name, x in outside.items():
        there = predict(x)
        found["strangers"][name] = {
            "entropy": analysis.detection(inside.entropy.total, there.entropy.total).auroc,
            "mutual_information": analysis.detection(inside.entropy.epistemic, there.entropy.epistemic).auroc,
            "confidence": float(there.probs.max(1).values.mean()),
        }
    for kind, levels in (("rotation", (0.0, *config.rotations)), ("noise", (0.0, *config.noises))):
        for level in levels:
            there = predict(SHIFTS[kind](few.x, level))
            entropy = float(there.entropy.total.mean())
            found["shifts"].append({"kind": kind, "level": level, "entropy": entropy, **scored(there, few.y)})
    return found


def pruned(config: Config, posterior: bnn.Posterior, test: Images) -> dict[str, Any]:
    """The test error when the weights with the least signal-to-noise are 0 (the paper, section 5.1 and figure 4).

    Signal-to-noise is the mean over the standard deviation; of a point, whose weights have no noise, the weight's size.
    Biases stay.
    """
    draws = posterior.draws(posterior.num_draws or config.draws)
    law = posterior.approximation
    if isinstance(law, Gaussian):
        mean, scale = (law.layout.unflatten(v) for v in (law.loc, law.log_scale.exp()))
        signal = {name: mean[name].abs() / scale[name] for name in mean if name.endswith("weight")}
    else:
        signal = {name: value[0].abs() for name, value in draws.items() if name.endswith("weight")}
    every = torch.cat([value.flatten() for value in signal.values()]).sort().values
    rows = []
    for share in config.removed:
        least = every[min(int(share * len(every)), len(every) - 1)]
        kept = {name: draws[name] * (value >= least) for name, value in signal.items()}
        prediction = posterior.predict(test.x, draws={**draws, **kept})
        rows.append({"removed": 100 * share, "kept": int((every >= least).sum()), **scored(prediction, test.y)})
    decibel = 20 * every.clamp(min=1e-4).log10()
    counts, edges = torch.histogram(decibel, 60)
    return {"rows": rows, "decibel": edges.tolist(), "weights": counts.tolist()}
