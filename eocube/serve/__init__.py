"""Shows cubes in a browser: tiles decoded on the fly, spectra through time, downloads, on this machine alone."""
