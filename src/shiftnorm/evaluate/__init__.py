"""Metrics, sweeps over corruptions, records of runs and the report made from them."""

from shiftnorm.evaluate.comparison import Comparison, compare
from shiftnorm.evaluate.metrics import (
    PairedDifference,
    Summary,
    compare_paired,
    error,
    mean_corruption_error,
    summarize,
)
from shiftnorm.evaluate.record import Record, read_record, write_record
from shiftnorm.evaluate.result import Result
from shiftnorm.evaluate.robustness import robustness
from shiftnorm.evaluate.sweep import SweepResult, predict, sweep

__all__ = [
    "Comparison",
    "PairedDifference",
    "Record",
    "Result",
    "Summary",
    "SweepResult",
    "compare",
    "compare_paired",
    "error",
    "mean_corruption_error",
    "predict",
    "read_record",
    "robustness",
    "summarize",
    "sweep",
    "write_record",
]
