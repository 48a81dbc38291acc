"""Awareness losses: a pure function and a thin module a file."""
