"""What a client is told of a field that is wrong: no word of the library that found it."""

from __future__ import annotations

import pytest

from cluster.field_faults import place_of
from cluster.row_wire import RowsRequest
from cluster.wire import SearchRequest, json_model, url_search_options
from operators.errors import HilbertflowError


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ('{"vectors": [[1]], "topk": 3}', "unknown field 'topk'; known are k, tier"),
        ('{"vectors": [[1]], "filtre": 3}', "unknown field 'filtre'; did you mean 'filter'? known are"),
        ('{"vectors": [["a"]]}', "vectors[0][0] is not a number"), ('{"vectors": 3}', "vectors is not a list"),
        ('{"vectors": [[1], 2]}', "vectors[1] is not a list"), ('{"texts": [1]}', "texts[0] is not a text"),
        ('{"k": 0}', "k is less than 1"), ('{"k": 10001}', "k is more than 10,000"),
        ('{"k": "3"}', "k is not a whole number"), ('{"k": 1.5}', "k is not a whole number"),
        ('{"metadata": 7}', "metadata is neither true nor false"), ('{"radius": NaN}', "radius is not a finite number"),
        ('{"filter": 1}', "filter is not a text"), ("[]", "is not a JSON object"), ("{", "is not JSON (EOF"),
        (f'{{"tier": "{"x" * 99}"}}', "tier has more than 64 characters"),
    ],
)  # fmt: skip
def test_searches(body: str, told: str) -> None:
    with pytest.raises(HilbertflowError) as caught:
        json_model(SearchRequest, body.encode())
    assert str(caught.value).startswith(f"body: {told}")
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ('{"vectors": [[1]]}', "ids is missing"), ('{"ids": []}', "ids has fewer than 1 items"),
        ('{"ids": ["a"], "op": "put"}', "op is not 'upsert' or 'append'"),
        ('{"ids": ["a"], "metadata": {"list": 3}}', "metadata.list is not a list"),
        ('{"ids": ["a"], "metadata": 3}', "metadata is not a JSON object"), ('{"id": ["a"]}', "ids is missing"),
    ],
)  # fmt: skip
def test_changes(body: str, told: str) -> None:
    with pytest.raises(HilbertflowError) as caught:
        json_model(RowsRequest, body.encode())
    assert str(caught.value).startswith(f"body: {told}")


def test_options_of_a_url() -> None:
    with pytest.raises(HilbertflowError, match=r"^URL: unknown field 'vectors'; known are k, tier"):
        url_search_options({"vectors": "x"})
    with pytest.raises(HilbertflowError, match="radius is not a number"):
        url_search_options({"radius": "near"})


def test_places() -> None:
    assert place_of(("metadata", "list", 3)) == "metadata.list[3]"
    assert place_of(("vectors", "list[list[constrained-float]]", 0, 1)) == "vectors[0][1]"
    assert place_of(()) == ""
