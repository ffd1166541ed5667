"""Gives training its patches: shards, rasters, scenes and cubes, behind one `draw(batch_size, patch)`."""
