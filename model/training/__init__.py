"""Training of the shipped and of users' own weights; nothing in eocube imports it."""
