"""Carry out a run: request, planning, Ray driver, actors, work units, resume, log, progress."""
