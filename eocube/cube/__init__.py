"""Read a cube back: `ds.eocube`, lazy decoding, quicklook, export, patches of source pixels."""
