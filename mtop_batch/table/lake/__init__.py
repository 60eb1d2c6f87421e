"""The published table as a Delta or Iceberg table too: the same rows, one commit for each run."""

from typing import Literal

TableFormat = Literal["parquet", "delta", "iceberg"]
