"""Features learnt without labels: objectives and transformations."""

from robustrun.methods.features.contrast import nt_xent
from robustrun.methods.features.reconstruction import contrast_normalised, random_patches, rica_loss, zca

__all__ = ["contrast_normalised", "nt_xent", "random_patches", "rica_loss", "zca"]
