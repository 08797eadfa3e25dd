"""Figures: every number the project claims comes out of ``hilbertflow bench NAME``, beside peers and controls."""

MODULES = {
    "weights": "pipelines.bench.weights",
    "memory": "pipelines.bench.memory",
    "lineage": "pipelines.bench.lineage",
    "search": "pipelines.bench.search",
}
"""The module of each benchmark; its ``run(quick)`` gives the tables, ``run(quick, plots)`` draws into a folder too."""
