"""Make the embedded catalogue: scenes made on the spot, no network."""

from eocube.demo.catalogue import DEMO_BBOX, DEMO_BOUNDS, DEMO_DATETIME, DEMO_EPSG, DEMO_SEED, make_demo

__all__ = ["DEMO_BBOX", "DEMO_BOUNDS", "DEMO_DATETIME", "DEMO_EPSG", "DEMO_SEED", "make_demo"]
