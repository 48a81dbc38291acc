"""Train a denoiser, aware or not: one loop, one recipe, exact resume."""

from segaware.training.fit import fit
from segaware.training.recipe import Recipe

__all__ = ["Recipe", "fit"]
