"""Trains networks, the shipped and users' own; nothing in eocube imports it."""
