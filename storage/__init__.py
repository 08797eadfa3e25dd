"""Where bytes lie: sources, Zarr codecs, archives, the catalog."""
