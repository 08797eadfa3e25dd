"""Figures: every number the project claims comes out of ``hilbertflow bench NAME``, beside peers and controls."""

MODULES = {
    "build": "pipelines.bench.build",
    "cold": "pipelines.bench.cold",
    "embeddings": "pipelines.bench.embeddings",
    "lineage": "pipelines.bench.lineage",
    "memory": "pipelines.bench.memory",
    "models": "pipelines.bench.models",
    "pipeline": "pipelines.bench.pipeline",
    "search": "pipelines.bench.search",
    "serve": "pipelines.bench.serve",
    "soak": "pipelines.bench.soak",
    "weights": "pipelines.bench.weights",
}
"""The module of each benchmark; its ``run(quick)`` gives the tables as they come; ``run(quick, plots)`` draws too."""
