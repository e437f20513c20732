"""Single rows in a report: those that the model is least sure of, and those that surprised it most."""

from __future__ import annotations

import torch
from torch import Tensor

from bnn import plots
from bnn.analysis.classification import class_probs
from bnn.plots.style import percent
from bnn.reporting.blocks import Block, Cell, Picture, Section, Table, Text, cell, picture, plain
from bnn.reporting.subject import Subject

#: Rows of a table, and columns of x in it.
_ROWS, _COLUMNS = 8, 5
#: Points along each side of a map, and of a band.
_MAP, _BAND = 45, 200


def cases(subject: Subject) -> Section:
    """The rows that the model is least sure of, those that surprised it most, and whether it knows when it errs."""
    section = Section("cases", "Where is it unsure, and where was it wrong?")
    log_p = subject.prediction.log_prob(subject.known.y).double().cpu()
    if subject.uncertainty is not None:
        title, values, _ = subject.uncertainty
        rows = [_case(subject, int(i), log_p) for i in values.argsort(descending=True)[:_ROWS]]
        section.blocks.append(Table(f"Largest uncertainty ({title})", _case_head(subject), rows))
    rows = [_case(subject, int(i), log_p) for i in log_p.argsort()[:_ROWS]]
    caption = "Largest surprise (the targets that were least probable)"
    section.blocks.append(Table(caption, _case_head(subject), rows))
    said = "“Not knowing” is the share of the uncertainty that more data would remove (epistemic); the rest is noise."
    section.blocks.append(Text(said, "small"))
    section.blocks += _case_figures(subject)
    return section


def _case_head(subject: Subject) -> list[str]:
    shown = [] if subject.features is None else list(subject.columns[:_COLUMNS])
    middle = [] if subject.uncertainty is None else [subject.uncertainty[0], "not knowing"]
    interval = [f"{percent(subject.level)} interval"] if _has_intervals(subject) else []
    return ["row", *shown, f"observed {subject.target}", "predicted", *interval, *middle, "log-density"]


def _case(subject: Subject, i: int, log_p: Tensor) -> list[Cell]:
    row = [cell(subject.row(i))]
    if subject.features is not None:
        row += [cell(float(value)) for value in subject.shown(subject.features[i : i + 1])[0, :_COLUMNS]]
    row += [_observed(subject, i), _predicted(subject, i)]
    if _has_intervals(subject):
        low, high = (end[i] for end in subject.interval)
        row.append(cell(f"{_several(low)} to {_several(high)}"))
    if subject.uncertainty is not None:
        _, total, share = subject.uncertainty
        row += [cell(float(total[i])), Cell(f"{100 * float(share[i]):.0f} %", float(share[i]))]
    return [*row, cell(float(log_p[i]))]


def _observed(subject: Subject, i: int) -> Cell:
    value = subject.known.y[i]
    if value.numel() > 1:
        return cell(_several(value))
    return cell(subject.class_name(int(value))) if subject.one_label else cell(float(value))


def _predicted(subject: Subject, i: int) -> Cell:
    prediction = subject.prediction
    if subject.one_label:
        top = class_probs(prediction)[i].max(-1)
        return cell(f"{subject.class_name(int(top.indices))} ({100 * float(top.values):.0f} %)")
    if "mean" not in prediction.likelihood.fields:
        return cell("–")
    mean = prediction.mean[i]
    return cell(float(mean)) if mean.numel() == 1 else cell(_several(mean))


def _has_intervals(subject: Subject) -> bool:
    return "quantile" in subject.prediction.likelihood.fields


def _several(values: Tensor) -> str:
    flat = values.flatten()
    said = ", ".join(f"{float(value):.3g}" for value in flat[:4]) + (", ..." if flat.numel() > 4 else "")
    return said.replace("-", "−")


def _case_figures(subject: Subject) -> list[Block]:
    blocks: list[Block] = []
    if subject.images is not None and subject.one_label:
        names = None if subject.classes is None else [plain(name[:20]) for name in subject.classes]
        drawn = plots.image_grid(subject.prediction, subject.images, subject.known.y, names=names)
        said = "The images of which the model is most certain, above those of which it is least."
        blocks.append(picture(drawn, said, "Most and least certain images", photographs=True))
    loss, label = _losses(subject)
    if subject.uncertainty is not None and loss is not None:
        said = f"{label} among the rows that are answered, the least certain ones left out first."
        ax = plots.risk_coverage(subject.uncertainty[1], loss, loss_label=label)
        blocks.append(picture(ax, said, "Does it know when it errs?"))
    shown = _over_inputs(subject) or _against_observed(subject)
    return blocks if shown is None else [*blocks, shown]


def _over_inputs(subject: Subject) -> Picture | None:
    """Over one input a band, over two a map."""
    table, posterior = subject.features, subject.posterior
    single = subject.known.y.dim() == 1 and posterior.model.readings is None
    if table is None or not table.is_floating_point() or not single or subject.uncertainty is None:
        return None
    scaled = "" if subject.units is None else " (standardised)"
    names = [plain(name) + scaled for name in subject.columns]
    if table.shape[1] == 1 and "quantile" in subject.fields:
        low, high = float(table.min()), float(table.max())
        room = 0.25 * (high - low)  # beyond the data, where uncertainty is to be seen growing
        x = torch.linspace(low - room, high + room, _BAND).to(table)
        inputs = x.reshape(-1, *subject.known.x.shape[1:])  # type: ignore[union-attr]
        ax = plots.predictive_band(
            subject.predict(inputs), x, data=(table, subject.known.y), level=subject.level,
            x_label=names[0], y_label=plain(subject.target), data_label=f"{subject.where} rows",
        )  # fmt: skip
        return picture(ax, "Predicted mean and intervals over the input.", "The prediction over its input")
    if table.shape[1] == 2:
        points = plots.grid(table.cpu(), points=_MAP)
        found = subject.predict(torch.as_tensor(points).to(table))
        data = (table, subject.known.y) if subject.one_label else table
        axes = plots.uncertainty_maps(found, points, data=data, x_labels=(names[0], names[1]))
        return picture(axes, "Two maps of uncertainty over the two inputs.", "Where it is unsure, and why")
    return None


def _against_observed(subject: Subject) -> Picture | None:
    if not {"quantile", "mean"} <= subject.fields or subject.known.y.dim() != 1:
        return None
    y_label = plain(subject.target)
    ax = plots.predicted_against_observed(subject.prediction, subject.known.y, level=subject.level, y_label=y_label)
    return picture(ax, "Predicted means and intervals over observed values.", "Predicted and observed")


def _losses(subject: Subject) -> tuple[Tensor | None, str]:
    if "accuracy" in subject.scores:
        return 1 - subject.scores["accuracy"].rows, "error rate"
    if "mae" in subject.scores:
        return subject.scores["mae"].rows, "mean absolute error"
    return None, ""
