"""The optimiser that a recipe names."""

from __future__ import annotations

import torch

from segaware.errors import TrainingError
from segaware.training.muon import Muon, inner_matrices
from segaware.training.recipe import Recipe
from segaware.wrapper import SegAwareWrapper

__all__ = ["make_optimizer"]


def make_optimizer(wrapper: SegAwareWrapper, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's, over what is trainable in the denoiser; Muon has a rate of its own for the inner matrices."""
    params = [p for p in wrapper.parameters() if p.requires_grad]
    if not params:
        raise TrainingError("the denoiser has no trainable parameters; set requires_grad_(True) on those to train")
    if recipe.optimizer == "muon":
        matrices = inner_matrices(wrapper, wrapper.info.channels)
        chosen = {id(p) for p in matrices}
        rate = recipe.matrix_learning_rate or 2 * recipe.learning_rate
        others = [p for p in params if id(p) not in chosen]
        return Muon(matrices, others, lr=rate, other_lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(params, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
