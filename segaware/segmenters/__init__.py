"""Segmenters for awareness and judging, and adapters that bring other people's to the contract."""
