"""Compute zones, lattice, grid and boxes: pure arithmetic."""
