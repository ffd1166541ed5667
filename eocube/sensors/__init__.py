"""Describe sensors and bands, and what their raw pixels mean."""

from pathlib import Path

from eocube.errors import InputError
from eocube.sensors.builtin import SENSORS
from eocube.sensors.sensor import Band, Sensor, nearest
from eocube.sensors.yaml_file import read_sensor

__all__ = ["Band", "Sensor", "get_sensor"]


def get_sensor(name_or_yaml_path: str | Path) -> Sensor:
    """A built-in sensor by its name, or a user's own from a YAML file (see `eocube.sensors.yaml_file` for its format).

    Raises `InputError` naming the nearest built-in names, or the key of the file that is wrong.
    """
    text = str(name_or_yaml_path)
    if text in SENSORS:
        return SENSORS[text]
    if text.lower().endswith((".yaml", ".yml")):
        return read_sensor(Path(text))
    raise InputError(f"no sensor {text!r}: {nearest(text, tuple(SENSORS))} A YAML file describes a sensor of your own")
