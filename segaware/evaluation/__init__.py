"""Measure denoisers on people's own images: protocol, contestants, judges, runner, statistics, reports."""
