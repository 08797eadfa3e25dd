"""Figures: every number the project claims comes out of ``hilbertflow bench NAME``, beside peers and controls."""

MODULES = {"weights": "pipelines.bench.weights"}
"""The module of each benchmark; its ``run(quick)`` gives the tables."""
