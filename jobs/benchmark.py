"""Measure eocube against its reference: `python jobs/benchmark.py encoder|decoder|pipeline|race|store --help`."""

import sys
from pathlib import Path

# The benchmarks are part of the repository, not of the installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
