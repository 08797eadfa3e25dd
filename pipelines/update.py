"""Bring a finished collection of a folder up to date: embed what is new or has changed, delete what is gone.

The rows go into the collection's log, where searches see them at once; the archive and its indexes stay as they are
until a compaction takes the log in.
"""

from __future__ import annotations

from collections.abc import Callable

from operators.embed import Embed
from operators.errors import HilbertflowError
from pipelines.plan import Pass, Plan, only_of
from pipelines.plan_rows import EMBEDDED_TOGETHER
from storage import archive
from storage.documents import FolderRows
from storage.folder_changes import FolderChanges, LogWriter, delete_rows, folder_changes
from storage.row_units import RowUnits
from storage.rowlog import RowLog

_UNIT_BYTES = 32 << 20


def is_folder(plan: Plan) -> bool:
    """Whether the source is a folder of documents or pictures, told apart file by file."""
    return _folder(plan) is not None


def changes_of(plan: Plan) -> FolderChanges | None:
    """What the folder has that its finished collection has not; None where the source is no folder.

    Raises when the model's files are not those that embedded the collection.
    """
    folder = _folder(plan)
    if folder is None:
        return None
    collection = archive.open_exactly(plan.spec.url)
    told = collection.attributes.get("encoder_digest")
    if told and told != plan.spec.attributes["encoder_digest"]:
        raise HilbertflowError(
            "was embedded by another model than lies there now", where=collection.url,
            remedy="set sink.name to another one: vectors of two models do not mix",
        )  # fmt: skip
    return folder_changes(folder, RowLog(collection).view)


def bring_up_to_date(plan: Plan, changes: FolderChanges, carry_out: Callable[[Pass], None]) -> None:
    """Put new rows in, then delete those that are gone; a run that was stopped in between goes on with what is left."""
    source, embed = changes.source, only_of(plan.operators, Embed)
    if source.count:
        each = max(1, min(EMBEDDED_TOGETHER, _UNIT_BYTES // source.row_bytes))
        units = RowUnits(source, each, row_bytes=source.row_bytes)
        carry_out(Pass("update", units, (embed,), LogWriter(plan.spec.url)))
    delete_rows(plan.spec.url, changes.gone)


def _folder(plan: Plan) -> FolderRows | None:
    source = getattr(plan.source, "source", None)
    return source if isinstance(source, FolderRows) else None
