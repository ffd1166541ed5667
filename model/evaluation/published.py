"""Holds the published tables (EO-VAE paper): 1, reconstruction in z-scores by per-batch ranges; 2, super-resolution."""

from __future__ import annotations

# Model -> sensor -> (RMSE, PSNR dB, SSIM, SAM rad); the specification of EO-VAE, section 12.
TABLE_1: dict[str, dict[str, tuple[float, float, float, float]]] = {
    "EO-VAE": {"S1RTC": (0.1401, 37.23, 0.9372, 0.1601), "S2L2A": (0.0686, 42.80, 0.9720, 0.0842)},
    "EO-VAE*": {"S1RTC": (0.1779, 35.22, 0.9010, 0.1940), "S2L2A": (0.0904, 37.58, 0.9383, 0.1135)},
    "TerraMind": {"S1RTC": (0.6711, 23.65, 0.2803, 0.7285), "S2L2A": (0.7004, 22.95, 0.7543, 0.3568)},
}
NDVI_MAE = {"EO-VAE": 0.0410, "TerraMind": 0.1403}
METRICS = ("rmse", "psnr", "ssim", "sam")

# Row -> (bands, PSNR dB, SSIM, RMSE, SAM rad, ms an image, images/s, GB, M parameters, M of these in the diffusion
# model): Table 2, super-resolution on Sen2NAIP, of red, green and blue alone; the specification of EO-VAE, section 12.
# RMSE and SAM of the last row are of another space than its PSNR ("facts in conflict", 5).
TABLE_2: dict[str, tuple[str, float, float, float, float, float, float, float, float, float]] = {
    "EO-VAE": ("RGBN", 21.60, 0.6234, 0.0836, 0.0672, 389.7, 2.57, 1.53, 106.5, 11.0),
    "EO-VAE*": ("RGBN", 22.17, 0.6556, 0.0785, 0.0584, 389.7, 2.57, 1.53, 106.5, 11.0),
    "Flux.2 VAE": ("RGB", 21.94, 0.6434, 0.0810, 0.0609, 374.7, 2.67, 1.41, 95.0, 11.0),
    "PIXELDiff": ("RGBN", 21.76, 0.3437, 0.7616, 0.6905, 7097.9, 0.14, 1.69, 10.8, 10.8),
}
