"""SwiGLU, the dense feed-forward network: each expert is one, and so is the shared expert."""

import torch.nn.functional as F
from torch import Tensor, nn

from minimoe.precision.linear import linear
from minimoe.precision.recipe import Recipe, as_recipe


class SwiGLU(nn.Module):
    """down( silu(gate x) * up x ), without biases (Shazeer, arXiv 2002.05202). x (..., D) -> (..., D)."""

    def __init__(self, dim: int, hidden_dim: int, recipe: Recipe | str | None = None) -> None:
        super().__init__()
        recipe = None if recipe is None else as_recipe(recipe)
        self.gate_proj = linear(dim, hidden_dim, recipe)
        self.up_proj = linear(dim, hidden_dim, recipe)
        self.down_proj = linear(hidden_dim, dim, recipe)
        for layer in (self.gate_proj, self.up_proj, self.down_proj):
            nn.init.normal_(layer.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
