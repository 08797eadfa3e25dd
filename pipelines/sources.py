"""Open the rows that a recipe names."""

from __future__ import annotations

from operators.errors import HilbertflowError
from pipelines import console
from pipelines.recipe import CollectionSource, DocstringsSource, DocumentsSource, ImagesSource, Recipe, VectorsSource
from storage import archive
from storage.collection_rows import CollectionRows
from storage.docstrings import DocstringRows
from storage.documents import open_folder
from storage.references import local_url
from storage.rows import RowSource
from storage.vectors import open_vectors


def row_source(recipe: Recipe) -> RowSource:
    """The source of a collection, checked as far as that goes before a run."""
    source = recipe.source
    rows: RowSource
    if isinstance(source, DocstringsSource):
        directory = "" if source.packages else source.path
        rows = DocstringRows(source.packages, directory, source.limit)
    elif isinstance(source, VectorsSource):
        rows = open_vectors(local_url(source.path), source.column, source.id_column)
    elif isinstance(source, DocumentsSource | ImagesSource):
        place = local_url(source.path)
        folder = (
            open_folder(place, "image")
            if isinstance(source, ImagesSource)
            else open_folder(place, "text", source.words, source.overlap)
        )
        for path, where, reason in folder.skipped:
            console.note(f"{path} is left out: {where}: {reason}")
        rows = folder
    elif isinstance(source, CollectionSource):
        rows = CollectionRows.of(archive.open(source.path), source.version)
    else:
        raise HilbertflowError(f"a {source.kind} has no rows", where="source")
    rows.check()
    return rows
