"""Describe sensors and bands, and what their raw pixels mean."""

from eocube.sensors.sensor import Band, Sensor, get_sensor

__all__ = ["Band", "Sensor", "get_sensor"]
