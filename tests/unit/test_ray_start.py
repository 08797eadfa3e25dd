"""A Ray that does not start or answer is one line with a remedy; other mistakes pass as they are."""

from __future__ import annotations

import inspect

import pytest
from ray._private import node

from cluster import ray_start
from operators.errors import HilbertflowError


def test_a_start_that_times_out_in_the_words_of_the_ray_that_is_installed() -> None:
    said = ray_start._TIMED_OUT
    assert said in inspect.getsource(node)
    with (
        pytest.raises(HilbertflowError, match="local: Ray did not start in time") as caught,
        ray_start.ray_starts(None),
    ):
        raise Exception(f"The current node {said}.")
    assert "--address" in caught.value.remedy


def test_others() -> None:
    with pytest.raises(HilbertflowError, match="no Ray cluster answers"), ray_start.ray_starts("10.0.0.1"):
        raise ConnectionError
    with pytest.raises(KeyError), ray_start.ray_starts(None):
        raise KeyError("mistake")
