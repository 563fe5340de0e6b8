"""A linear layer whose three products in training are computed under a recipe.

The weight itself stays in high precision (a master weight): the optimizer's small steps would be lost in 8
bits. Inference has no steps, and the 8-bit codes suffice: ``quantize_weights_``.
"""

from torch import Tensor, nn

from minimoe.precision.matmul import matmul
from minimoe.precision.quantize import Quantized
from minimoe.precision.recipe import Cast, Recipe, as_recipe

SCALE_SUFFIX = "_scale_inv"
"""Appended to a weight's name for its scales, as in DeepSeek's checkpoints (whose "inverse" is the factor
that codes are multiplied by)."""


class Linear(nn.Linear):
    """``nn.Linear`` under a recipe: x (..., I) -> x weightᵀ + bias (..., O), weight (O, I) float32.

    After ``quantize_weights_()`` the weight is stored as codes, with scales in ``weight_scale_inv``; it takes
    a quarter of the memory and can no longer be trained.

    Raises:
        ValueError: an unknown recipe.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, recipe: Recipe | str = "deepseek-v3",
        device=None, dtype=None,
    ) -> None:  # fmt: skip
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.recipe = as_recipe(recipe)

    def forward(self, x: Tensor) -> Tensor:
        y = matmul(x, get_weight(self, "weight", self.recipe.weight).mT, self.recipe)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def quantize_weights_(self) -> None:
        """Replace the weight by its codes. Does nothing if the recipe does not cast weights."""
        store_quantized_(self, "weight", self.recipe.weight)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, recipe={self.recipe.name}"


def linear(in_features: int, out_features: int, recipe: Recipe | None) -> nn.Linear:
    """A layer without bias: ``nn.Linear`` if there is no recipe."""
    if recipe is None:
        return nn.Linear(in_features, out_features, bias=False)
    return Linear(in_features, out_features, bias=False, recipe=recipe)


def quantize_weights_(model: nn.Module) -> nn.Module:
    """For inference: store the weights of every layer that has a recipe as 8-bit codes only.

    In place; returns the model. Convert the model's dtype before, not after: codes must not be converted.
    """
    for module in model.modules():
        quantize = getattr(module, "quantize_weights_", None)
        if callable(quantize):
            quantize()
    return model


def store_quantized_(module: nn.Module, name: str, cast: Cast | None) -> None:
    """Replace the parameter ``name`` (..., O, I) by a buffer of its codes and one of its scales."""
    parameter = module._parameters.get(name)
    if parameter is None or cast is None:
        return
    codes = cast.quantize(parameter.detach(), -1)
    del module._parameters[name]
    module.register_buffer(name, codes.data)
    module.register_buffer(name + SCALE_SUFFIX, codes.scale_codes)


def get_weight(module: nn.Module, name: str, cast: Cast | None) -> Tensor | Quantized:
    """The weight ``name`` of a module: its parameter, or its codes after ``store_quantized_``."""
    weight = getattr(module, name)
    scale = module._buffers.get(name + SCALE_SUFFIX)
    if cast is None or scale is None:
        return weight
    return Quantized(weight, scale, cast.fmt, cast.block or (None, None))
