"""Freeze what a run reads, and what it will cost."""
