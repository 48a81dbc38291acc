"""Denoise images of any size: tiles, precision, memory."""
