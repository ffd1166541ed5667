"""Holds the published reconstruction table (EO-VAE paper, Table 1), all in z-scores, with per-batch ranges."""

from __future__ import annotations

# Model -> sensor -> (RMSE, PSNR dB, SSIM, SAM rad); the specification of EO-VAE, section 12.
TABLE_1: dict[str, dict[str, tuple[float, float, float, float]]] = {
    "EO-VAE": {"S1RTC": (0.1401, 37.23, 0.9372, 0.1601), "S2L2A": (0.0686, 42.80, 0.9720, 0.0842)},
    "EO-VAE*": {"S1RTC": (0.1779, 35.22, 0.9010, 0.1940), "S2L2A": (0.0904, 37.58, 0.9383, 0.1135)},
    "TerraMind": {"S1RTC": (0.6711, 23.65, 0.2803, 0.7285), "S2L2A": (0.7004, 22.95, 0.7543, 0.3568)},
}
NDVI_MAE = {"EO-VAE": 0.0410, "TerraMind": 0.1403}
METRICS = ("rmse", "psnr", "ssim", "sam")
