"""Keep the Zarr store: layout, whole-shard codec, receipts and commit log, lease, tables, verification."""
