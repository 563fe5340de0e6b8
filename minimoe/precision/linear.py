"""A linear layer whose three products in training are done under a recipe.

The weight itself stays in high precision ("master weights"): the optimizer's small steps would be lost in
8 bits. Without training there are no steps, and the 8-bit codes are enough: ``quantize_weights_``.
"""

from torch import Tensor, nn

from minimoe.precision.matmul import matmul
from minimoe.precision.quantize import Quantized
from minimoe.precision.recipe import Cast, Recipe, as_recipe

SCALE = "_scale_inv"

"""Added to a weight's name for its scales, as in DeepSeek's checkpoints (whose "inverse" is what codes are
multiplied with)."""


class Linear(nn.Linear):
    """``nn.Linear`` under a recipe: x (..., I) -> x weightᵀ + bias (..., O), weight (O, I) float32.

    After ``quantize_weights_()`` the weight is codes, with scales in ``weight_scale_inv``; it takes a quarter
    of the memory and learns no more.

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
        y = matmul(x, held(self, "weight", self.recipe.weight).mT, self.recipe)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def quantize_weights_(self) -> None:
        """Replace the weight by its codes. Nothing happens if the recipe leaves weights as they are."""
        hold_codes_(self, "weight", self.recipe.weight)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, recipe={self.recipe.name}"


def linear(in_features: int, out_features: int, recipe: Recipe | None) -> nn.Linear:
    """A layer without bias: torch's own where there is no recipe."""
    if recipe is None:
        return nn.Linear(in_features, out_features, bias=False)
    return Linear(in_features, out_features, bias=False, recipe=recipe)


def quantize_weights_(model: nn.Module) -> nn.Module:
    """For inference: every layer of the model that has a recipe keeps its weights as 8-bit codes alone.

    In place; returns the model. Move the model to its dtype before, not after: codes must not be converted.
    """
    for module in model.modules():
        to_codes = getattr(module, "quantize_weights_", None)
        if callable(to_codes):
            to_codes()
    return model


def hold_codes_(module: nn.Module, name: str, cast: Cast | None) -> None:
    """Replace the parameter ``name`` (..., O, I) by buffers with its codes and, ``name`` + SCALE, scales."""
    parameter = module._parameters.get(name)
    if parameter is None or cast is None:
        return
    codes = cast.quantize(parameter.detach(), -1)
    del module._parameters[name]
    module.register_buffer(name, codes.data)
    module.register_buffer(name + SCALE, codes.scale_codes)


def held(module: nn.Module, name: str, cast: Cast | None) -> Tensor | Quantized:
    """The weight ``name`` of a module, as the parameter or as the codes that it holds."""
    weight = getattr(module, name)
    scale = module._buffers.get(name + SCALE)
    if cast is None or scale is None:
        return weight
    return Quantized(weight, scale, cast.fmt, cast.block or (None, None))
