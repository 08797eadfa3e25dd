"""How operators become stages."""

from __future__ import annotations

import pytest

from operators.embed import Embed
from operators.errors import HilbertflowError
from operators.frame_encode import FrameEncode
from operators.row_blocks import RowBlocks
from operators.row_code import RowCoding
from pipelines.graph import on_device, stages

CHAIN = (Embed(model="m"), RowBlocks(), RowCoding(), FrameEncode(coder="rans"))


def test_neighbours_of_equal_resources_share_a_stage_and_embedding_has_its_own() -> None:
    assert [stage.name for stage in stages(CHAIN)] == ["embed", "row_blocks → row_code → frame_encode"]


@pytest.mark.parametrize(("device", "there", "taken"), [("auto", 0, 0), ("auto", 2, 1), ("cpu", 2, 0), ("cuda", 1, 1)])
def test_a_gpu_is_asked_for_where_it_is_wanted_and_there(device: str, there: int, taken: int) -> None:
    (embed, *others) = on_device(CHAIN, device, there)
    assert embed.parallel().gpus == taken and tuple(others) == CHAIN[1:]


def test_cuda_without_a_gpu_fails_clearly() -> None:
    with pytest.raises(HilbertflowError, match="no GPU"):
        on_device(CHAIN, "cuda", 0)
