"""What a PertNN sees of a block: its statistics, the last losses and its own last output."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from zoft.blocks import Block, Blocks
from zoft.config import Config
from zoft.noise import spans

#: The inputs in order [ZOFT]: mean and unbiased variance of the block, L+ and L− of the previous step
#: (0 at step 0), and the block's previous σ (1 at step 0).
FEATURES = ("mean", "variance", "loss_plus", "loss_minus", "sigma")

FeatureKind = Literal["raw", "standardised"]

_CLIP = 5.0
_TINY = 1e-12
_LEAST_SCALE = 1e-30  # above float32's smallest, so that no scale is 0 there


class FeatureConstants(Config):
    """Constants of the standardised features, measured over the base model's blocks.

    Mean and logarithm of the variance are shifted and scaled to zero mean and unit deviation over the
    blocks of the base; they are part of the tuner, so a derivative sees the same scale.
    """

    mean_shift: float = Field(0.0, description="Mean over blocks of the block means.")
    mean_scale: float = Field(1.0, ge=_LEAST_SCALE, description="Standard deviation over blocks of the block means.")
    log_variance_shift: float = Field(0.0, description="Mean over blocks of log(variance + 1e-12).")
    log_variance_scale: float = Field(1.0, ge=_LEAST_SCALE, description="Standard deviation over blocks of the same.")

    @classmethod
    def of(cls, statistics: Tensor) -> FeatureConstants:
        """The constants of a base from its statistics, float32 of shape [B, 2]."""
        mean, log_variance = statistics[:, 0].double(), (statistics[:, 1].double() + _TINY).log()

        def deviation(values: Tensor) -> float:
            return max(float(values.std(unbiased=False)), 1e-6)

        return cls(
            mean_shift=float(mean.mean()),
            mean_scale=deviation(mean),
            log_variance_shift=float(log_variance.mean()),
            log_variance_scale=deviation(log_variance),
        )


def block_statistics(blocks: Blocks) -> Tensor:
    """Mean and unbiased variance of every block, whatever its dtype accumulated in float32 or wider.

    Returns:
        float32 tensor of shape [B, 2] on the CPU. The variance of a single entry is 0.
    """
    return torch.tensor([_moments(block) for block in blocks], dtype=torch.float32)


def _moments(block: Block) -> tuple[float, float]:
    """Chan's update over chunks: no float32 copy of a whole low-precision tensor."""
    values = block.parameter.detach().contiguous()
    count, mean, squares = 0, 0.0, 0.0
    for span in spans(block):
        part = span.of(values).float()
        variance, center = torch.var_mean(part, correction=0)
        delta, size = float(center) - mean, len(span)
        squares += float(variance) * size + delta**2 * count * size / (count + size)
        mean += delta * size / (count + size)
        count += size
    return mean, squares / (count - 1) if count > 1 else 0.0


def features(
    kind: FeatureKind, constants: FeatureConstants, statistics: Tensor, losses: Tensor, sigma: Tensor
) -> Tensor:
    """The PertNNs' inputs.

    Args:
        kind: ``raw``, as published; or ``standardised``: the block statistics by the tuner's constants,
            log(1 + loss), log σ, all clipped to ±5.
        statistics: [B, 2] from :func:`block_statistics`.
        losses: [2], L+ and L− of the previous step.
        sigma: [B], the previous σ; gradients flow through it.

    Returns:
        float32 tensor of shape [B, 5].
    """
    both = losses.float().expand(len(sigma), 2)
    if kind == "raw":
        return torch.cat([statistics, both, sigma[:, None]], dim=1)
    mean = (statistics[:, 0] - constants.mean_shift) / constants.mean_scale
    log_variance = (statistics[:, 1] + _TINY).log()
    log_variance = (log_variance - constants.log_variance_shift) / constants.log_variance_scale
    parts = [mean, log_variance, *both.clamp(min=0).log1p().unbind(1), sigma.clamp(min=_TINY).log()]
    return torch.stack(parts, dim=1).clamp(-_CLIP, _CLIP)
