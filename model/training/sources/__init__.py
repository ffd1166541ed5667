"""Where training patches come from: shards, rasters, scenes and cubes, behind one `draw(batch_size, patch)`."""
