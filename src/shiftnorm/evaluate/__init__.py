"""Metrics, sweeps over corruptions, records of runs and the report made from them."""

from shiftnorm.evaluate.metrics import (
    PairedDifference,
    Summary,
    compare_paired,
    error,
    mean_corruption_error,
    summarize,
)
from shiftnorm.evaluate.record import Record, read_record, write_record
from shiftnorm.evaluate.sweep import SweepResult, predict, sweep

__all__ = [
    "PairedDifference",
    "Record",
    "Summary",
    "SweepResult",
    "compare_paired",
    "error",
    "mean_corruption_error",
    "predict",
    "read_record",
    "summarize",
    "sweep",
    "write_record",
]
