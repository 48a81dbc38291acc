"""Denoisers, one architecture a file."""

from segaware.denoisers.dncnn import DnCNN
from segaware.denoisers.ffdnet import FFDNet
from segaware.denoisers.liu import LiuDenoiser

__all__ = ["DENOISERS", "DnCNN", "FFDNet", "LiuDenoiser"]

#: Short names, for command lines.
DENOISERS = {"dncnn": DnCNN, "ffdnet": FFDNet, "liu": LiuDenoiser}
