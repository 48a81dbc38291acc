"""Denoisers, one architecture a file."""

from segaware.denoisers.ddfn import DDFN
from segaware.denoisers.dncnn import DnCNN
from segaware.denoisers.ffdnet import FFDNet
from segaware.denoisers.liu import LiuDenoiser

__all__ = ["DDFN", "DENOISERS", "DnCNN", "FFDNet", "LiuDenoiser"]

#: Short names, for command lines.
DENOISERS = {"ddfn": DDFN, "dncnn": DnCNN, "ffdnet": FFDNet, "liu": LiuDenoiser}
