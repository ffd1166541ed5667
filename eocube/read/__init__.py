"""Read windows of one time, alone or a shard at once: pixels at native sampling."""
