"""Data sets of the Hugging Face Hub, through `datasets` (the optional extra `hub-data`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqat.data.text_columns import check_text_column, column_texts
from sqat.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

ROWS_AT_A_TIME = 1024


@dataclass(frozen=True)
class HubReader:
    """One split of a loaded data set."""

    name: str
    dataset: Dataset
    field: str
    encoding_errors: str

    def read(self) -> Iterator[str]:
        row = 0
        for table in self.dataset.select_columns([self.field]).with_format("arrow").iter(ROWS_AT_A_TIME):
            yield from column_texts(table.column(0), self.encoding_errors, self.name, row)
            row += len(table)

    def identity(self) -> list[object]:
        # The folder that `datasets` keeps a data set in is named for its revision, or for the files it was made from.
        files = [str(Path(file["filename"]).resolve()) for file in self.dataset.cache_files]
        return ["hub", self.name, self.field, self.encoding_errors, self.dataset.num_rows, files]


def open_hub(dataset_id: str, subset: str | None, split: str, field: str, encoding_errors: str) -> HubReader:
    """Load (at first download) one split of a Hub data set.

    Raises DataError where `datasets` is not installed, the Hub cannot be reached, or the data set, subset, split or
    text field does not exist.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{dataset_id!r} is not an existing file or folder, and reading the Hub needs: pip install datasets"
        ) from error
    try:
        dataset = datasets.load_dataset(dataset_id, subset, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"the Hub data set {dataset_id!r} (subset {subset!r}, split {split!r}) cannot be loaded: {error}. "
            'A local file or folder, or the built-in "stories", needs no network'
        ) from error
    name = f"{dataset_id}{f':{subset}' if subset else ''} ({split})"
    check_text_column(dataset.features.arrow_schema, field, name)
    return HubReader(name, dataset, field, encoding_errors)
