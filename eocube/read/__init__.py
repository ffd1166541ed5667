"""Read one window of one time: pixels at native sampling."""
