"""One call that asks of a posterior whatever can be asked of it, and answers in words."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from bnn.analysis.approximation import ImportanceCheck, Width, psis, width
from bnn.analysis.collapse import LayerSpread, layer_spread
from bnn.analysis.convergence import EFFECTIVE, Convergence, convergence, has_chains
from bnn.analysis.coverage import Surprise, surprise
from bnn.analysis.density import draw_chunks
from bnn.analysis.guard import HistoryCheck, check_history
from bnn.approximations import LocalGaussian
from bnn.posterior import Posterior
from bnn.prediction import Prediction
from bnn.random import other_seed

#: The chance of a false alarm of the test on held-out rows.
_SURPRISE = 1e-3
#: Width below which a posterior is too narrow, if that is beyond this many standard errors.
_NARROW, _ERRORS = 0.7, 4.0
#: How far two estimates of the bound may be apart, in nats, beyond their errors.
_BOUND = 1.0

#: What is wrong, in general; the flag's own text has the numbers.
_MEANING = {
    "not_converged": "The chains (or the first and second halves of one) disagree about what is named here, so that "
    "their draws are not yet draws of one posterior. Run them longer, or from better starts; do not trust intervals.",
    "few_effective_draws": "The chains agree, but hold few independent draws: means and intervals are rough. Run "
    "longer.",
    "divergences": "The sampler met regions that its steps were too coarse for; draws near them are missing. Smaller "
    "steps (target_accept nearer 1) help, or a prior scale that is not centred.",
    "too_narrow": "The posterior claims to know more than it does: the model's own density around its draws, or "
    "rows that it has not seen, ask for more spread. Usual causes: training that stopped early, one mode of several, a "
    "noise scale that is fixed too low or was learned on rows that the network has by heart. Train longer, or widen "
    "the predictions (bnn.analysis.fit_widening, fit_temperature, conformal intervals).",
    "poor_approximation": "The approximation differs from the true posterior of the weights so much that weighting its "
    "draws cannot mend it. This is so for nearly every approximation of a network with more than some dozens of "
    "weights, also for good ones: k-hat adds up the errors of all weights, and asks for all modes. It means that the "
    "draws are not to be taken for exact ones, in quantities such as the evidence. It does not mean that predictions "
    "are bad: for these look at held-out scores, the width and simulation-based calibration (bnn.analysis.sbc).",
    "collapsed_to_prior": "The posterior of these parameters is the prior: the data were not allowed to say anything "
    "about them. Usual causes: too many weights for the data under mean-field inference, a KL weight that is too "
    "large, or N / n left out.",
    "collapsed_to_point": "The posterior of these parameters has no spread left: it expresses no uncertainty about "
    "them. A point estimate has none by design, nor have the layers that a last-layer method holds fixed. Other "
    "causes: a KL weight that is too small, a scale that ran to zero, a sampler that does not move.",
    "n_over_batch": "The fit did not scale its batches up to the whole data (the factor N / n): the posterior is that "
    "of a smaller data set, and too wide.",
    "bound_disagrees": "The evidence bound that was reported is not the one that the model's density gives: the loss "
    "that was minimised is not the model's.",
}


@dataclass(frozen=True)
class Flag:
    """Something that is wrong, by name."""

    #: One of the names in `FLAGS`.
    name: str
    #: The numbers behind it.
    found: str

    @property
    def meaning(self) -> str:
        """What it means, and what helps."""
        return _MEANING[self.name]


#: The names that a flag can have.
FLAGS = tuple(_MEANING)


@dataclass(frozen=True)
class Verdict:
    """What was asked of a posterior, and what is wrong with it. ``str()`` says it in words."""

    method: str
    flags: tuple[Flag, ...]
    convergence: Convergence | None
    importance: ImportanceCheck | None
    width: Width | None
    layers: dict[str, LayerSpread]
    surprise: Surprise | None
    history: HistoryCheck | None
    #: What was not asked or has no answer, and why.
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the flags."""
        return tuple(flag.name for flag in self.flags)

    @property
    def good(self) -> bool:
        """Whether no flag was raised."""
        return not self.flags

    @property
    def judged(self) -> bool:
        """Whether the draws themselves could be judged: not the points of an ensemble, without chains or a density."""
        return _DRAWS not in self.skipped

    def __str__(self) -> str:
        good = "no objection" + (" to what was asked" if self.skipped else "")
        lines = [f"{self.method}: " + (good if self.good else ", ".join(dict.fromkeys(self.names)))]
        for flag in self.flags:
            lines += [f"- {flag.name}: {flag.found}", textwrap.fill(flag.meaning, 100, **_INDENT)]
        asked = (self.importance, self.width, self.surprise, self.convergence, self.history)
        said = [line for part in asked if part is not None for line in str(part).splitlines()] + self._spread
        lines += ["What was measured:", *[f"  {line}" for line in said]]
        if self.skipped:
            lines.append("What was not asked, or has no answer:")
            lines += [f"  {name}: {why}" for name, why in self.skipped.items()]
        return "\n".join(lines)

    @property
    def _spread(self) -> list[str]:
        if not self.layers:
            return []
        order = sorted(self.layers, key=lambda name: self.layers[name].ratio)
        ends = [f"{self.layers[name].ratio:.2g} ({name})" for name in dict.fromkeys((order[0], order[-1]))]
        return [f"spread of the weights over that of their prior, by layer: {' to '.join(ends)}"]


#: What cannot be asked of points.
_DRAWS = "convergence, k-hat, width"
#: What fields of a verdict are called in its text, where that is not their name.
_TITLES = {"importance": "k-hat", "history": "training loss", "surprise": "coverage"}
_INDENT: dict[str, Any] = {"initial_indent": "    ", "subsequent_indent": "    "}


def diagnose(
    posterior: Posterior, x: Any, y: Any, *, held_out: tuple[Any, Any] | None = None, num: int = 1000, seed: int = 0
) -> Verdict:
    """Ask of a posterior what applies to its method, and say what is wrong with it by name.

    Chains: R-hat and effective draws in function space, divergences. Densities (variational, Laplace): k-hat and the
    bound against the true joint. Both: the width (`bnn.analysis.width`). Any: collapse of layers to the prior or to a
    point, batches that were not scaled by N / n, and on held-out rows whether the posterior is too sure.

    Thresholds are such that exact draws of the posterior raise any flag about once in 500 times: one in 1,000 for all
    R-hats together, one in 1,000 for held-out rows, and wider margins for the others. Nothing raised is no proof: a
    mode that every chain has missed is seen by nobody.

    Args:
        posterior: Any.
        x: All training inputs.
        y: Their targets.
        held_out: ``(x, y)`` that were not fitted.
        num: Draws for k-hat.
        seed: Of all draws.

    Raises:
        ValueError: Data that do not fit the model.
    """
    asked: dict[str, Any] = {}
    skipped: dict[str, str] = {}

    def ask(name: str, question: Any, *args: Any, **options: Any) -> None:
        try:
            asked[name] = question(*args, **options)
        except (ValueError, TypeError) as error:
            skipped[_TITLES.get(name, name)] = str(error)

    # Before the questions: a refusal of theirs says that they do not apply, and wrong data are no such thing.
    posterior.predict(x, 1, seed).targets(y)
    chains, continuous = has_chains(posterior), posterior.num_draws is None
    if chains:
        ask("convergence", convergence, posterior, x, y)
    if continuous:
        ask("importance", psis, posterior, x, y, num=num, seed=seed)
    if chains or "importance" in asked:
        ask("width", width, posterior, x, y, seed=seed)
    if isinstance(posterior.approximation, LocalGaussian) and posterior.approximation.linear:
        skipped["k-hat and width of the predictions"] = (
            "predictions are those of the linearised network, while k-hat and width set the weights against the "
            "network itself: far off limits they say little about the predictions; look at held-out rows"
        )
    if not chains and not continuous:
        skipped[_DRAWS] = (
            f"{posterior.num_draws} point(s), with neither chains to be compared nor a density: whether they stand for "
            "the posterior is not known; look at held-out rows"
        )
    ask("history", check_history, posterior, x, y, seed=seed)
    layers = layer_spread(posterior, seed=seed)
    if held_out is None:
        skipped["coverage"] = "no held-out rows: give held_out=(x, y)"
    else:
        prediction = _predicted(posterior, held_out[0], num, seed)
        prediction.targets(held_out[1])
        ask("surprise", surprise, prediction, held_out[1], seed=seed)
    verdict = Verdict(
        str(posterior.settings.get("method", posterior.approximation.kind)),
        (),
        asked.get("convergence"),
        asked.get("importance"),
        asked.get("width"),
        layers,
        asked.get("surprise"),
        asked.get("history"),
        skipped,
    )
    return _with_flags(verdict, posterior)


def _predicted(posterior: Posterior, x: Any, num: int, seed: int) -> Prediction:
    """By all draws, or `num` of a continuous posterior: never all of their weights in memory."""
    num = num if posterior.num_draws is None else posterior.num_draws
    chunks = enumerate(draw_chunks(posterior, num, seed))
    parts = [posterior.predict(x, values, other_seed(seed, f"inputs {i}")) for i, values in chunks]
    outputs = torch.cat([part.outputs for part in parts])
    latents = {name: torch.cat([part.latents[name] for part in parts]) for name in parts[0].latents}
    return Prediction(parts[0].likelihood, outputs, latents)


def _with_flags(verdict: Verdict, posterior: Posterior) -> Verdict:
    flags = [
        *_of_chains(verdict),
        *_of_density(verdict, posterior),
        *_of_width(verdict),
        *_of_layers(verdict, posterior),
    ]
    if verdict.history is not None and verdict.history.flagged:
        flags.append(Flag("n_over_batch", str(verdict.history)))
    return replace(verdict, flags=tuple(flags))


def _of_chains(verdict: Verdict) -> list[Flag]:
    chains = verdict.convergence
    if chains is None:
        return []
    apart = [f"{name}: {part}" for name, part in chains.asked.items() if not part.mixed]
    flags = [Flag("not_converged", "; ".join(apart))] if apart else []
    if not flags and chains.functions.least_ess < EFFECTIVE:
        flags.append(Flag("few_effective_draws", f"functions: {chains.functions}"))
    if chains.divergences:
        flags.append(
            Flag("divergences", f"{chains.divergences} of {chains.chains * chains.draws} transitions diverged")
        )
    return flags


def _of_density(verdict: Verdict, posterior: Posterior) -> list[Flag]:
    check, evidence = verdict.importance, posterior.evidence
    if check is None:
        return []
    flags = [] if check.good else [Flag("poor_approximation", str(check))]
    if evidence is not None and evidence.kind == "elbo":
        apart = abs(evidence.value - check.elbo)
        if apart > _BOUND + _ERRORS * (evidence.se + check.elbo_error):
            found = f"reported {evidence.value:.1f} nats, the model's density gives {check.elbo:.1f}"
            flags.append(Flag("bound_disagrees", found))
    return flags


def _of_width(verdict: Verdict) -> list[Flag]:
    flags = []
    if verdict.width is not None and verdict.width.value + _ERRORS * verdict.width.error < _NARROW:
        flags.append(Flag("too_narrow", str(verdict.width)))
    if verdict.surprise is not None and verdict.surprise.p_value < _SURPRISE:
        flags.append(Flag("too_narrow", str(verdict.surprise)))
    return flags


def _of_layers(verdict: Verdict, posterior: Posterior) -> list[Flag]:
    points = [name for name, layer in verdict.layers.items() if layer.is_point]
    prior = [name for name, layer in verdict.layers.items() if layer.is_prior]
    flags = [Flag("collapsed_to_point", ", ".join(points))] if points else []
    # Symmetric posteriors have the prior's marginals without having collapsed: chains are not blamed for it.
    if prior and posterior.num_draws is None:
        flags.append(Flag("collapsed_to_prior", ", ".join(prior)))
    return flags
