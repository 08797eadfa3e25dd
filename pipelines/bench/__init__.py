"""Figures: every number the project claims comes out of ``hilbertflow bench NAME``, beside peers and controls."""

MODULES = {"search": "pipelines.bench.search", "weights": "pipelines.bench.weights"}
"""The module of each benchmark; its ``run(quick)`` gives the tables, ``run(quick, plots)`` draws into a folder too."""
