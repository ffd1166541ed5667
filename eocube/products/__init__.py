"""Define what a cube may hold, and make and undo it."""
