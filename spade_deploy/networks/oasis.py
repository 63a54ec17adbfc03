"""The generator of OASIS (Schönfeld et al., "You Only Need Adversarial Supervision for Semantic Image Synthesis", ICLR
2021).

Its residual blocks are SPADE's. Their modulation sees noise beside the segmap: a vector, the same at every pixel, whose
channels come first. It is six blocks and five doublings, without SPADE's second block at 1/16 of the size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spade_deploy.networks.modulation import TrainingLookup
from spade_deploy.networks.spade import SpadeGenerator


class OasisGenerator(SpadeGenerator):
    """segmap and noise -> image. Section 3.2 of the paper."""

    def forward(self, segmap: Tensor, z: Tensor | None = None, lookup: TrainingLookup | None = None) -> Tensor:
        """segmap: N x L x H x W, H and W multiples of 32. z: N x noise_channels, standard normal; None without noise.

        lookup: None. Returns N x 3 x H x W in [-1, 1].
        """
        if self.spec.noise_channels:
            if z is None:
                raise ValueError("OASIS needs noise, z")
            noise = z[:, :, None, None].expand(-1, -1, *segmap.shape[2:])
            segmap = torch.cat([noise, segmap], dim=1)
        elif z is not None:
            raise ValueError("an OASIS without noise takes no z")
        return super().forward(segmap)
