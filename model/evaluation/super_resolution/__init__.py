"""Measures super-resolution on pairs of held-out places: baselines, ceiling and diffusion side by side."""
