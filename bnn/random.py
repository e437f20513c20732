"""The one place that touches torch's random state: seeded inside, untouched outside."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def fresh_seed() -> int:
    """A seed from the operating system; torch's own generators are not asked, so they do not move."""
    return secrets.randbelow(2**63)


def other_seed(seed: int, purpose: str) -> int:
    """A seed for another purpose, so that two uses of one seed do not meet the same random numbers.

    Draws of the weights, noise on top of them, and the data of somebody who said ``torch.manual_seed(0)`` would else be
    the same numbers, and correlated.
    """
    return int.from_bytes(hashlib.sha256(f"{purpose} {seed}".encode()).digest()[:8], "big") >> 1


def generator_state(device: torch.device | str = "cpu") -> torch.Tensor:
    """The random states of the CPU and of a device, as one tensor: it differs once a number was drawn."""
    return torch.cat([generator.get_state() for generator in _generators(torch.device(device))])


def set_generator_state(state: torch.Tensor, device: torch.device | str = "cpu") -> None:
    """Go back to what `generator_state` gave, in a block that is `isolated`.

    Raises:
        ValueError: It is of other generators.
    """
    generators = _generators(torch.device(device))
    sizes = [len(generator.get_state()) for generator in generators]
    if state.dtype != torch.uint8 or state.shape != (sum(sizes),):
        raise ValueError(f"a random state of {tuple(state.shape)} is none of {torch.device(device).type}: {sum(sizes)}")
    for generator, own in zip(generators, state.split(sizes), strict=True):
        generator.set_state(own.clone())


def _generators(device: torch.device) -> list[torch.Generator]:
    generators = [torch.default_generator]
    if device.type == "cuda":
        torch.cuda.init()
        index = torch.cuda.current_device() if device == torch.device("cuda") else device.index
        generators.append(torch.cuda.default_generators[index])
    elif device.type == "mps":
        generators.append(torch.mps._get_default_mps_generator())
    return generators


def generator(device: torch.device) -> torch.Generator:
    """The generator that random numbers on a device come from."""
    return _generators(device)[-1]


def seed_generators(seed: int, device: torch.device | str = "cpu") -> None:
    """Start the random states anew, in a block that is `isolated`."""
    for own in _generators(torch.device(device)):
        own.manual_seed(seed)


@contextmanager
def isolated(seed: int | None = None, device: torch.device | str = "cpu") -> Iterator[None]:
    """Run a block under its own random state, and put the surrounding one back.

    Args:
        seed: The state that the block starts from; ``None`` starts it from the present state.
        device: The device whose generator is saved and seeded beside the CPU's.
    """
    generators = _generators(torch.device(device))
    saved = [generator.get_state() for generator in generators]
    try:
        # torch.manual_seed would also seed every other device, now or when it is first used.
        if seed is not None:
            for generator in generators:
                generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, saved, strict=True):
            generator.set_state(state)
