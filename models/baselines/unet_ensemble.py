"""Several U-Nets that differ in their start: each is a sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from revgrad.models.segmenter import LossTerms, Segmenter
from revgrad.models.unet import UNet


class UNetEnsemble(Segmenter):
    """Independent U-Nets of one architecture (Lakshminarayanan et al. 2017).

    As Kohl et al. 2018 compare with it: the first sample is the first member's prediction, and so
    on, so that there are as many samples as members. The members' losses are added: each gets the
    gradient that it would get by itself. To train them on different batches, train
    ``ensemble.members[k]``.

    Args:
        members: their number.
        spatial_dims, in_channels, out_channels, unet: of `UNet`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        members: int = 4,
        **unet: Any,
    ) -> None:
        if members < 1:
            raise ValueError(f"an ensemble needs at least one member, not members={members}")
        nets = [UNet(spatial_dims, in_channels, out_channels, **unet) for _ in range(members)]
        super().__init__(spatial_dims, in_channels, out_channels, divisor=nets[0].divisor)
        self.members = nn.ModuleList(nets)
        self.most_samples = members

    def loss(self, image: Tensor, masks: Tensor) -> LossTerms:
        """The sum of the members' losses; `reconstruction` is their mean."""
        losses = [member(image, masks) for member in self.members]
        total = torch.stack([terms.total for terms in losses]).sum()
        reconstruction = torch.stack([terms.reconstruction for terms in losses]).mean(0)
        return LossTerms(total, reconstruction, losses[0].kl)

    def sample(self, image: Tensor, n: int) -> Tensor:
        """The predictions of the first n members, which do not change from call to call.

        Raises:
            ValueError: n is larger than the number of members.
        """
        self.check_count(n)
        refuse_more_than(len(self.members), n, "members")
        return torch.stack([member(image) for member in self.members[:n]], 1)


def refuse_more_than(available: int, n: int, what: str) -> None:
    """Raise a ValueError if more samples are asked for than there are."""
    if n > available:
        raise ValueError(
            f"{n} samples were asked for, but there are {available} {what}, each of which gives "
            f"one: ask for fewer, or train a network with {what}={n}"
        )
