"""Encode a region: STAC scenes in, a latent Zarr cube out. `python jobs/encode_region.py --help` lists the options."""

import sys

from eocube.cli import encode_main

if __name__ == "__main__":
    sys.exit(encode_main(sys.argv[1:], "encode_region.py"))
