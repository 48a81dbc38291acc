"""Layers that are used in more than one place, or that people want in networks of their own."""
