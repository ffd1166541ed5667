"""Measurements of eocube: modules behind `jobs/benchmark.py`, and their results as JSON."""
