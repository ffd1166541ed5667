"""What stands in for pixels that are not there: the ground mirrored across its nearest pixel, read or decoded."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

Places = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]


def mirror_sources(there: npt.NDArray[np.bool_]) -> tuple[Places, Places]:
    """For (H, W): the (rows, columns) where `there` is False, and those whose values stand in for them.

    The pixel p with the nearest pixel q that is there takes the value at 2q - p when that is there, else the one at q:
    the ground goes on in the way it ends, so that the network sees something plausible next to what is kept. Some pixel
    must be there.
    """
    gaps = np.nonzero(~there)
    nearest: npt.NDArray[Any] = distance_transform_edt(~there, return_distances=False, return_indices=True)
    near = nearest[:, gaps[0], gaps[1]]
    across = 2 * near - np.stack(gaps)
    height, width = there.shape
    usable = (across[0] >= 0) & (across[0] < height) & (across[1] >= 0) & (across[1] < width)
    usable &= there[across[0].clip(0, height - 1), across[1].clip(0, width - 1)]
    row, col = np.where(usable, across, near)
    return (gaps[0], gaps[1]), (row, col)
