"""Recording a module with ``torch.export``, and writing the record as a file that torch or ONNX reads."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import pyro
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from bnn.export.rows import rows_first
from bnn.inputs import Inputs
from bnn.random import isolated
from bnn.writing import write_file

Format = Literal["pt2", "onnx"]

#: The name of the metadata among the ``extra_files`` of ``torch.export``, and among the properties of an ONNX file.
METADATA = "metadata.json"

_SUFFIXES: dict[str, Format] = {".pt2": "pt2", ".onnx": "onnx"}


def format_of(path: str | Path, given: Format | None) -> Format:
    """The format of a file, by its name if none is given.

    Raises:
        ValueError: Neither tells; a format that is not known.
    """
    if given is not None and given not in _SUFFIXES.values():
        raise ValueError(f"format is 'pt2' (torch.export) or 'onnx', not {given!r}")
    known = given or _SUFFIXES.get(Path(path).suffix.lower())
    if known is None:
        raise ValueError(f"{Path(path).name!r} ends in neither .pt2 nor .onnx: give format='pt2' or format='onnx'")
    if known == "onnx" and importlib.util.find_spec("onnxscript") is None:
        raise ValueError("writing ONNX needs the packages onnx and onnxscript: pip install 'bnn-toolkit[onnx]'")
    return known


def recorded(module: nn.Module, x: Inputs) -> ExportedProgram:
    """A module as a program of tensor operations, for any number of rows.

    Args:
        module: Called with the inputs as a network is.
        x: Inputs, of two rows or more.
    """
    args, kwargs = ((), dict(x)) if isinstance(x, Mapping) else (x if isinstance(x, tuple) else (x,), {})
    shapes: dict[str, Any] = {"args": rows_first(tuple(args)), "kwargs": rows_first(kwargs)}
    shapes = {name: value for name, value in shapes.items() if value}
    like = x if isinstance(x, Tensor) else next(iter(kwargs.values() if kwargs else args))
    with (
        torch.no_grad(),
        pyro.validation_enabled(False),
        isolated(0, like.device),
        warnings.catch_warnings(),
    ):
        # torch warns of its own deprecated names, and of constants that it copies into the program.
        warnings.simplefilter("ignore")
        program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes)
    for part in program.graph_module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.nodes:
                _check(node)
                node.meta.pop("stack_trace", None)  # names of files and lines of this machine
    # Of a view a file would hold all that it is a view of.
    for tensors in (program.state_dict, program.constants):
        for name, value in tensors.items():
            if isinstance(value, Tensor) and (
                value.untyped_storage().nbytes() > value.nbytes or not value.is_contiguous()
            ):
                tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
    program._example_inputs = None  # torch would write them as a pickle
    return program


def _drops_nothing(node: torch.fx.Node) -> bool:
    """Whether dropout is the operation's only use of random numbers (dropout, attention, recurrence), and is off."""
    schema = cast(torch._ops.OpOverload, node.target)._schema.arguments
    given = {argument.name: value for argument, value in zip(schema, node.args, strict=False)} | dict(node.kwargs)
    names = {argument.name for argument in schema}
    off = given.get("train") is False if "train" in names else not given.get("dropout_p", 0.0)
    return off and bool(names & {"train", "dropout_p"})


def _check(node: torch.fx.Node) -> None:
    """Raise for an operation whose answer would differ from call to call."""
    if isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags:
        if _drops_nothing(node):
            return
        raise NotImplementedError(f"it takes random numbers ({node.target}) at every call")


def write(program: ExportedProgram, path: str | Path, form: Format, metadata: Mapping[str, Any]) -> Path:
    """Write a program, whole or not at all, with its metadata as JSON in the file.

    Raises:
        NotImplementedError: ONNX has no counterpart of an operation.
        OSError: No space, no permission; what was there stays.
    """
    text = json.dumps(metadata, indent=2, allow_nan=False)
    content = io.BytesIO()
    if form == "pt2":
        torch.export.save(program, content, extra_files={METADATA: text})
    else:
        _write_onnx(program, content, text)
    return write_file(path, content.getvalue())


def _write_onnx(program: ExportedProgram, content: io.BytesIO, text: str) -> None:
    names = list(json.loads(text)["outputs"])
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.onnx.export(program, dynamo=True, verbose=False, optimize=True)
    except torch.onnx.errors.OnnxExporterError as error:
        raise NotImplementedError(f"ONNX: {_first_line(error.__cause__ or error)}") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    assert found is not None
    for i, node in enumerate(found.model.graph):
        for j, value in enumerate(node.outputs):
            value.name = f"value_{i}_{j}"  # some are called "mean", as an output is
    for value, name in zip(found.model.graph.outputs, names, strict=True):
        value.name = name
    found.model.metadata_props[METADATA] = text
    content.write(found.model_proto.SerializeToString())


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def in_words(error: BaseException) -> str:
    """Why something could not be recorded, on one line."""
    words = _first_line(error)
    if "Constraints violated" in str(error) or "specialized" in str(error):
        words = (
            "torch cannot record it for any number of rows. A forward pass that turns this number into a Python number "
            "(len(x), int(x.shape[0])) or branches on it is one reason: write x.shape[0]; an operation that torch "
            f"records for one shape alone is another. Torch says: {words}"
        )
    return words
