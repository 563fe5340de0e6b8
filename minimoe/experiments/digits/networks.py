"""[evidence] Small networks on handwritten digits, one per seed, in one batch, from labels or a teacher.

The first setting of distillation (Hinton, Vinyals and Dean, arXiv 1503.02531, section 3), on 1,797 images of
8×8 gray pixels that come with scikit-learn (Alpaydin and Kaynak, UCI, 1998).

Dimensions: S seeds, one network each; N images, D pixels (64) or width, C classes (10), H shifts of an image.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimoe.distill.losses import kd_loss

CLASSES, SIDE = 10, 8  # digits; pixels per side of an image

TEACHER, TEACHER_STEPS = (64, 64), 1500  # hidden widths; dropout and shifted images need many steps


class Images(NamedTuple):
    """Training and test images: pixels (N, D) from 0 to 1, labels (N,) int64."""

    train_ND: Tensor
    train_N: Tensor
    test_ND: Tensor
    test_N: Tensor


def load_images(n_test: int = 900) -> Images:
    """The digits in a fixed random order (the file is sorted by writer), the last ``n_test`` for testing.

    Raises:
        ValueError: scikit-learn is missing, or no image is left to train on.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError("the digits come with scikit-learn; pip install scikit-learn") from error
    pixels, labels = load_digits(return_X_y=True)
    if not 0 < n_test < len(labels):
        raise ValueError(f"n_test ({n_test}) must be between 1 and {len(labels) - 1}, all images but one")
    order_N = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x_ND, y_N = torch.tensor(pixels, dtype=torch.float32)[order_N] / 16, torch.tensor(labels)[order_N]
    return Images(x_ND[:-n_test], y_N[:-n_test], x_ND[-n_test:], y_N[-n_test:])


class Networks(nn.Module):
    """S independent multilayer perceptrons of one shape, with ReLUs, computed in one batch.

    Args:
        widths: from the pixels to the classes, such as (64, 128, 10).
        dropout: fraction of each hidden layer that is dropped in training.
        generator: for the weights (He initialization) and for dropout, so torch's global state is unused.
    """

    def __init__(
        self, n_seeds: int, widths: Sequence[int], *, dropout: float = 0.0, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for d_in, d_out in pairwise(widths):
            weight = torch.randn(n_seeds, d_in, d_out, generator=generator, device=generator.device)
            self.weights.append(nn.Parameter(weight * math.sqrt(2 / d_in)))
            self.biases.append(nn.Parameter(weight.new_zeros(n_seeds, 1, d_out)))
        self.dropout, self.generator = dropout, generator

    def forward(self, x_SND: Tensor) -> Tensor:
        """Pixels (S, N, D), or (N, D) for the same images in all networks, to logits (S, N, C)."""
        h_SND = x_SND.expand(len(self.weights[0]), -1, -1)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if layer:
                h_SND = self._dropout(h_SND.relu())
            h_SND = torch.baddbmm(bias, h_SND, weight)
        return h_SND

    def _dropout(self, h_SND: Tensor) -> Tensor:
        if not self.training or self.dropout == 0:
            return h_SND
        mask = torch.rand(h_SND.shape, generator=self.generator, device=h_SND.device) >= self.dropout
        return h_SND * mask / (1 - self.dropout)


def train_networks(
    hidden: Sequence[int], x_SND: Tensor, labels_SN: Tensor, *, seed: int, rate: float, steps: int,
    batch: int = 100, teacher_SNC: Tensor | None = None, temperature: float = 1.0, alpha: float = 0.0,
    dropout: float = 0.0, jitter: float = 0.0,
) -> Networks:  # fmt: skip
    """S networks with these hidden widths, each trained on its own N images; returned in evaluation mode.

    Adam with a learning rate that decays linearly to 0; batches are drawn with replacement. Initial weights
    and batches depend on ``seed`` and the shapes alone, so they are the same with and without a teacher.

    Args:
        teacher_SNC: the teacher's logits. With them the loss is ``kd_loss`` at ``temperature`` and ``alpha``;
            without, the cross-entropy with the labels.
        jitter: probability that an image is shifted by at most a pixel, to one of 9 positions.

    Raises:
        ValueError: fewer than 1 network, image, step or image per batch.
    """
    (n_seeds, n_images), device = labels_SN.shape, x_SND.device
    for name, value in {"seeds": n_seeds, "images": n_images, "steps": steps, "batch": batch}.items():
        if value < 1:
            raise ValueError(f"{name} ({value}) must be at least 1")
    generator = torch.Generator(device).manual_seed(seed)
    widths = (x_SND.shape[-1], *hidden, CLASSES)
    networks = Networks(n_seeds, widths, dropout=dropout, generator=generator)
    x_HSND = shifted(x_SND) if jitter else x_SND.unsqueeze(0)
    optimizer = torch.optim.Adam(networks.parameters(), rate, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=steps)
    seeds_S1 = torch.arange(n_seeds, device=device).unsqueeze(1)
    size = (n_seeds, min(batch, n_images))
    for _ in range(steps):
        rows = torch.randint(n_images, size, generator=generator, device=device)
        shift = torch.zeros_like(rows)
        if jitter:
            random = torch.randint(len(x_HSND), size, generator=generator, device=device)
            unshifted = torch.rand(size, generator=generator, device=device) >= jitter
            shift = random.masked_fill(unshifted, len(x_HSND) // 2)  # the middle one is the image itself
        logits, labels = networks(x_HSND[shift, seeds_S1, rows]), labels_SN[seeds_S1, rows]
        if teacher_SNC is None:
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        else:
            teacher = teacher_SNC[seeds_S1, rows]
            loss = kd_loss(logits, teacher, labels, temperature=temperature, alpha=alpha)
        optimizer.zero_grad()
        (n_seeds * loss).backward()  # the mean is over all networks; each gets the gradient of its own mean
        optimizer.step()
        schedule.step()
    return networks.eval()


def shifted(x_SND: Tensor) -> Tensor:
    """(9, S, N, D): the images shifted by -1, 0 or 1 pixel in each direction and padded with 0."""
    padded = F.pad(x_SND.unflatten(-1, (SIDE, SIDE)), (1, 1, 1, 1))
    views = [padded[..., r : r + SIDE, c : c + SIDE].flatten(-2) for r in range(3) for c in range(3)]
    return torch.stack(views)


def raise_bias(logits_SNC: Tensor, digits: Sequence[int], share: float) -> Tensor:
    """(S,) bias that makes networks classify ``share`` of the N images as one of these digits.

    Hinton's correction for digits that are missing in the transfer set. He chose the bias with the fewest
    errors on the test set; this one needs no labels, but images in which the digits' share is known.
    """
    chosen_C = torch.zeros(logits_SNC.shape[-1], dtype=torch.bool, device=logits_SNC.device)
    chosen_C[list(digits)] = True
    rival_SN = logits_SNC.masked_fill(chosen_C, -math.inf).amax(-1)
    best_SN = logits_SNC.masked_fill(~chosen_C, -math.inf).amax(-1)
    return (rival_SN - best_SN).quantile(share, dim=-1)


class Teachers(NamedTuple):
    """The images, and the logits (S, N, C) of the teacher of each seed for them."""

    images: Images
    seed: int
    train_SNC: Tensor
    test_SNC: Tensor


@torch.no_grad()
def predict(networks: Networks, images: Images) -> tuple[Tensor, Tensor]:
    """Logits (S, N, C) for the training images and for the test images."""
    return networks(images.train_ND), networks(images.test_ND)


def train_teachers(
    images: Images | None = None, *, seeds: int = 10, seed: int = 0, steps: int = TEACHER_STEPS
) -> Teachers:
    """One teacher per seed, trained on all training images with dropout, some of them shifted.

    Raises:
        ValueError: seeds or steps below 1, or scikit-learn is missing.
    """
    images = images or load_images()
    x_SND, labels_SN = images.train_ND.expand(seeds, -1, -1), images.train_N.expand(seeds, -1)
    networks = train_networks(
        TEACHER, x_SND, labels_SN, seed=2 * seed, rate=5e-3, steps=steps, dropout=0.2, jitter=0.25
    )
    return Teachers(images, seed, *predict(networks, images))


def draw_rows(teachers: Teachers, n_images: int) -> Tensor:
    """(S, n_images) indices of the training images of each seed's students."""
    generator = torch.Generator().manual_seed(teachers.seed)
    return torch.rand(teachers.train_SNC.shape[:2], generator=generator).argsort(-1)[:, :n_images]
