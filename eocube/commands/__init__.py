"""Defines the commands that read cubes and catalogue them: their options, parsed, and what they call."""
