"""Networks, losses, metrics, data and training for medical images."""

from revgrad.models.iunet import iUNet

__all__ = ["iUNet"]
