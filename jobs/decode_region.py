"""Decode a latent cube to GeoTIFF or Zarr. `python jobs/decode_region.py --help` lists the options."""

import sys

from eocube.cli import decode_main

if __name__ == "__main__":
    sys.exit(decode_main(sys.argv[1:], "decode_region.py"))
