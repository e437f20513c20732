"""A model whole in a file: the recipe of its network, and prior, likelihood and all else as values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bnn.approximations import Approximation
from bnn.model import BNN
from bnn.nets import rebuilt
from bnn.posterior import Posterior
from bnn.random import isolated
from bnn.values import NotPlainError, from_json, in_a_line, to_json

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def model_parts(posterior: Posterior, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What a model is built from, as JSON.

    Args:
        posterior: Whose model it is.
        tensors: Takes the tensors of settings.

    Returns:
        ``network``, a recipe; ``dtype``, ``frozen`` (names of parameters that are constants), ``prior``,
        ``likelihood``, ``output``, ``inputs``; and in ``given`` what is none of these, and has to be handed in: by
        name of the part, why.
    """
    model = posterior.model
    inputs = model.readings
    values: dict[str, Any] = {
        "prior": model.prior,
        "likelihood": model.likelihood,
        "output": model.output,
        "inputs": None,
    }
    if inputs is not None:
        values["inputs"] = {"noise": inputs.noise, "prior": inputs.prior, "missing": inputs.missing}
    parts: dict[str, Any] = {"given": {}}
    for name, value in values.items():
        try:
            parts[name] = to_json(value, tensors, name=name)
        except NotPlainError as error:
            parts[name], parts["given"][name] = None, str(error)
    try:
        parts |= _network_parts(model.net, posterior.approximation)
    except NotPlainError as error:
        parts["given"]["network"] = str(error)
    return parts


def needed(parts: Mapping[str, Any], net: nn.Module | None = None) -> str:
    """Why a model cannot be rebuilt, in words; empty if it can. Its network may be given."""
    given = parts.get("given")
    if not isinstance(given, dict):
        raise ValueError("what the model is built from is damaged")
    return "; ".join(str(why) for name, why in given.items() if net is None or name != "network")


def rebuilt_model(
    parts: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    numbers: int,
    layers: int,
    net: nn.Module | None = None,
) -> BNN:
    """The model of which `model_parts` were written.

    Args:
        parts: JSON of any origin.
        tensors: Those of settings.
        numbers: How many there are in the file: a network of more cannot have been saved there.
        layers: How many the network may have at most.
        net: In the place of the one that is written.

    Raises:
        ValueError: The parts are damaged, or of a newer bnn.
    """
    try:
        values = {name: from_json(parts[name], tensors, most=numbers) for name in ("prior", "likelihood", "output")}
        inputs = from_json(parts["inputs"], tensors, most=numbers)
        if net is None:
            net = _network(parts, numbers, layers)
            if isinstance(values["output"], int | str):
                raise ValueError(f"networks of bnn.nets return a tensor: output={values['output']!r} is none of it")
        if inputs is None:
            return BNN(net, values["prior"], values["likelihood"], output=values["output"])
        missing = "infer" if inputs["missing"] else None
        return BNN(
            net,
            values["prior"],
            values["likelihood"],
            output=values["output"],
            input_noise=inputs["noise"],
            input_prior=inputs["prior"],
            missing=missing,  # type: ignore[arg-type]
        )
    except (KeyError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        raise ValueError(f"the saved model is damaged: {in_a_line(error)}") from error


def _network_parts(net: nn.Module, approximation: Approximation) -> dict[str, Any]:
    recipe = getattr(net, "recipe", None)
    if recipe is None:
        raise NotPlainError(f"the network, a {type(net).__name__}, is code: only those of bnn.nets are rebuilt")
    with torch.device("meta"):
        same = rebuilt(recipe)
    approximation.put_in(same)
    dtypes = {str(t.dtype).removeprefix("torch.") for t in net.state_dict().values() if t.is_floating_point()}
    (dtype,) = dtypes if len(dtypes) == 1 else ("",)
    shapes = [{name: tuple(t.shape) for name, t in each.state_dict().items()} for each in (net, same.eval())]
    if dtype not in _DTYPES or repr(net) != repr(same) or shapes[0] != shapes[1] or "forward" in vars(net):
        raise NotPlainError(f"the network was changed after bnn.nets.{recipe['net']} had built it")
    frozen = [name for name, parameter in net.named_parameters() if not parameter.requires_grad]
    return {"network": recipe, "dtype": dtype, "frozen": frozen}


def _network(parts: Mapping[str, Any], numbers: int, layers: int) -> nn.Module:
    with torch.device("meta"):  # no memory is taken until the size is known
        size = sum(t.numel() for t in rebuilt(parts["network"], layers).state_dict().values())
    if size > numbers:
        raise ValueError(f"the saved network has {size:,} numbers, and the file {numbers:,}")
    with isolated(0):
        net = rebuilt(parts["network"]).to(_DTYPES[parts["dtype"]])
    parameters = dict(net.named_parameters())
    for name in parts["frozen"]:
        parameters[name].requires_grad_(False)
    return net
