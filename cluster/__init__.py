"""What runs on many machines: index builds, shards, the search engine, the Serve app, jobs."""
