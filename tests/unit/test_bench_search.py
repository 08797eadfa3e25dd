"""Settings that `bench search` adds to its sweep."""

from __future__ import annotations

from pipelines.bench.search import between


def test_a_setting_between_the_last_that_misses_and_the_first_that_reaches() -> None:
    swept = [({"ef": 8, "refine": 2}, 0.80), ({"ef": 16, "refine": 2}, 0.93), ({"ef": 16, "refine": 4}, 0.94),
             ({"ef": 32, "refine": 2}, 0.97), ({"ef": 32, "refine": 4}, 0.98)]  # fmt: skip
    assert between(swept, 0.95) == {"ef": 24, "refine": 2}
    assert between(swept, 0.90) == {"ef": 12, "refine": 2}
    assert between(swept, 0.99) is None  # none reaches it
    assert between(swept, 0.70) is None  # the cheapest does
    assert between([({"ef": 9}, 0.8), ({"ef": 10}, 0.9)], 0.85) is None  # nothing lies between
    closer = [*swept, ({"ef": 24, "refine": 2}, 0.951)]
    assert between(closer, 0.95) == {"ef": 20, "refine": 2}
