"""Large JSON bodies are read a piece at a time: the same vectors, the same errors, and others have their turn."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pyarrow as pa
import pytest

from cluster import json_vectors
from cluster.json_vectors import MARK, PIECE, apart
from cluster.media import JSON
from cluster.query import checked_vectors
from cluster.row_wire import parse_rows
from cluster.wire import SearchRequest, json_model, parse_request
from operators.errors import HilbertflowError

DIM = 7


def body(count: int, **more: object) -> bytes:
    values = np.random.default_rng(count).standard_normal((count, DIM))
    return json.dumps({"k": 3, "vectors": values.tolist(), "explain": True} | more).encode()


@pytest.mark.parametrize("count", [1, 2, 500, 4000])
@pytest.mark.parametrize("indent", [None, 1])
def test_pieces_are_the_whole(count: int, indent: int | None) -> None:
    sent = json.dumps(json.loads(body(count)), indent=indent).encode()
    found = apart(sent)
    assert found is not None
    rest, vectors = found
    whole = json_model(SearchRequest, sent)
    np.testing.assert_array_equal(vectors, np.array(whole.vectors).astype(np.float32))
    assert json_model(SearchRequest, rest) == whole.model_copy(update={"vectors": MARK})


@pytest.mark.parametrize(
    "wrong",
    [
        b'{"vectors":[[1,2],[3]]}', b'{"vectors":[[1,2],]}', b'{"vectors":[[1,2][3,4]]}',
        b'{"vectors":[[1,2],[3,"4"]]}', b'{"vectors":[[1,2],[3,true]]}', b'{"vectors":[[false,2],[3,4]]}',
        b'{"vectors":[[1,2],[3,4]}', b'{"vectors":[[1,2],null]}', b'{"vectors":[[[1]]]}', b'{"vectors":[]}',
        b'{"vectors":"AAAA"}', b'{"vectors":[[1,2],[3,4]', b'{"vectors":[[1],{"a":[2]}]}', b"[]", b"",
    ],
)  # fmt: skip
def test_what_is_of_another_form_is_parsed_whole(wrong: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told apart or not, the answer is that of the parser that sees all of it."""
    expected = outcome(wrong)
    monkeypatch.setattr("cluster.wire.LARGE", 0)
    for piece in (1, 5, PIECE):
        monkeypatch.setattr(json_vectors, "PIECE", piece)
        assert outcome(wrong) == expected


@pytest.mark.parametrize(
    "sent",
    [
        b'{"vectors":[[1,2],[3,4]],"vectors":[[5,6]]}', b'{"x":{"vectors":[[1,2]]},"vectors":[[5,6]]}',
        b'{"filter":"a","vectors":[[1,2],[3,4]] , "k":2}', b'{ "vectors" : [ [1e39,2] , [3,4] ] }',
        b'{"k":2,"vectors":[[NaN,2],[3,4]]}', b'{"a\\"vectors":[[1,2]],"vectors":[[3,4]]}',
    ],
)  # fmt: skip
def test_odd_bodies_mean_what_they_mean_whole(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = outcome(sent)
    monkeypatch.setattr("cluster.wire.LARGE", 0)
    for piece in (1, 5, PIECE):
        monkeypatch.setattr(json_vectors, "PIECE", piece)
        assert outcome(sent) == expected


def outcome(sent: bytes) -> tuple[str, object]:
    """Vectors and options, or what is wrong."""
    try:
        asked = parse_request(JSON, sent, {}, 2)
        return asked.options.model_dump_json(exclude={"vectors"}), checked_vectors(asked.vectors, 2, "l2").tolist()
    except HilbertflowError as error:
        return "refused", str(error)


@pytest.mark.parametrize("large", [0, json_vectors.LARGE])
@pytest.mark.parametrize("value", [b"true", b"false", b'"4"', b"null"])
def test_only_numbers_are_numbers(value: bytes, large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`true` is not 1, in queries and in rows; the error names the place."""
    monkeypatch.setattr("cluster.wire.LARGE", large)
    with pytest.raises(HilbertflowError, match=r"vectors\[1\]\[0\] is not a number"):
        parse_request(JSON, b'{"vectors": [[1, 2], [' + value + b", 4]]}", {}, 2)
    with pytest.raises(HilbertflowError, match=r"vectors\[0\]\[1\] is not a number"):
        parse_rows(JSON, b'{"ids": ["a"], "vectors": [[1, ' + value + b"]]}", "upsert", 2, pa.schema([]))


def test_rows_come_in_pieces_too() -> None:
    count = 4000
    sent = json.dumps(json.loads(body(count)) | {"ids": [str(i) for i in range(count)]})
    kept = {name: value for name, value in json.loads(sent).items() if name in ("ids", "vectors")}
    change = parse_rows(JSON, json.dumps(kept).encode(), "upsert", DIM, pa.schema([("id", pa.string())]))
    assert change.vectors.shape == (count, DIM) and change.vectors.dtype == np.float32


def test_others_have_their_turn() -> None:
    """While 20 MB are read in a thread the event loop goes round again and again."""
    values = np.random.default_rng(0).standard_normal((2600, 384))
    sent, turns = json.dumps({"vectors": values.tolist()}).encode(), 0

    async def read() -> int:
        nonlocal turns
        task = asyncio.create_task(asyncio.to_thread(parse_request, JSON, sent, {}, 384))
        while not task.done():
            turns += 1
            await asyncio.sleep(0.001)
        return len((await task).vectors)

    assert asyncio.run(read()) == 2600
    assert turns > 15
