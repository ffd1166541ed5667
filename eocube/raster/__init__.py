"""Read one file through GDAL: environment, cache, warp, what is refused."""
