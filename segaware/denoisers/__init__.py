"""Denoisers, one architecture a file."""
