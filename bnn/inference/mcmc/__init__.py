"""Markov chain Monte Carlo with Hamiltonian dynamics."""

from bnn.inference.mcmc.chees import ChEES
from bnn.inference.mcmc.methods import HMC, NUTS

__all__ = ["HMC", "NUTS", "ChEES"]
