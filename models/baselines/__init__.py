"""What the Probabilistic U-Net and PHiSeg are compared with."""

from revgrad.models.baselines.dropout_unet import DropoutUNet
from revgrad.models.baselines.image2image_vae import Image2ImageVAE
from revgrad.models.baselines.independent_pixels import IndependentPixels
from revgrad.models.baselines.m_heads import MHeads
from revgrad.models.baselines.unet_ensemble import UNetEnsemble

__all__ = ["DropoutUNet", "Image2ImageVAE", "IndependentPixels", "MHeads", "UNetEnsemble"]
