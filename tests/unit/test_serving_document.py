"""docs/serving.md names every key of the configuration with its default: it stays true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from cluster.config import CollectionConfig, EncoderConfig, Limits, ModelConfig, ServeConfig

TEXT = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
PARTS: dict[str, type[BaseModel]] = {
    "The service": ServeConfig, "`collections`": CollectionConfig, "`models`": ModelConfig, "`encoder`": EncoderConfig,
    "`limits`": Limits,
}  # fmt: skip


def written(default: Any) -> str:
    """A default as the document writes it."""
    if isinstance(default, BaseModel):
        return "as below"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, int | float):
        return f"{default:,.10g}" if isinstance(default, float) else f"{default:,}"
    return "none" if default in (None, ()) else f"`{default}`"


@pytest.mark.parametrize("heading", PARTS)
def test_every_key_has_its_row(heading: str) -> None:
    """In the order of the code, with the default of the code, and none that is not there."""
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| .+ \|$", section, re.MULTILINE)
    fields = PARTS[heading].model_fields
    expected = [
        (name, "required" if field.is_required() else written(field.get_default())) for name, field in fields.items()
    ]
    assert rows == expected
