"""Prints the n-th shell block of the README (from 1), so that what is tested is what a newcomer is told to type."""

import re
import sys
from pathlib import Path

blocks = re.findall(r"^```sh\n(.*?)^```", (Path(__file__).parents[1] / "README.md").read_text(), re.M | re.S)
print(blocks[int(sys.argv[1]) - 1].strip())
