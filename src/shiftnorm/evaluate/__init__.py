"""Metrics, sweeps over corruptions, records of runs and the reports made from them."""

from shiftnorm.evaluate.adversarial import auto_attack, fgsm, pgd
from shiftnorm.evaluate.baselines import ALEXNET, BASELINES, Baseline, find_baseline
from shiftnorm.evaluate.bootstrap import Interval, bootstrap, wilson_interval
from shiftnorm.evaluate.calibration import (
    expected_calibration_error,
    mad_calibration_error,
    reliability,
    rms_calibration_error,
)
from shiftnorm.evaluate.classification import brier_score, negative_log_likelihood, per_class_error, top_k_error
from shiftnorm.evaluate.comparison import Comparison, compare
from shiftnorm.evaluate.corruption_error import corruption_errors, mce, relative_mce, worst_corruption
from shiftnorm.evaluate.html_report import write_report
from shiftnorm.evaluate.metrics import (
    PairedDifference,
    Summary,
    compare_paired,
    error,
    mean_corruption_error,
    summarize,
)
from shiftnorm.evaluate.outcome import CellOutcome
from shiftnorm.evaluate.paired import compare_images, compare_seeds, mcnemar
from shiftnorm.evaluate.record import Record, read_record, write_record
from shiftnorm.evaluate.result import Result
from shiftnorm.evaluate.robustness import robustness
from shiftnorm.evaluate.seed_groups import compare_groups, group_results
from shiftnorm.evaluate.sequence_stability import measure_stability
from shiftnorm.evaluate.stability import mean_flip_probability, mean_flip_rate, mean_top5_distance
from shiftnorm.evaluate.stability_result import StabilityResult
from shiftnorm.evaluate.sweep import SweepResult, predict, sweep

__all__ = [
    "ALEXNET",
    "BASELINES",
    "Baseline",
    "CellOutcome",
    "Comparison",
    "Interval",
    "PairedDifference",
    "Record",
    "Result",
    "StabilityResult",
    "Summary",
    "SweepResult",
    "auto_attack",
    "bootstrap",
    "brier_score",
    "compare",
    "compare_groups",
    "compare_images",
    "compare_paired",
    "compare_seeds",
    "corruption_errors",
    "error",
    "expected_calibration_error",
    "fgsm",
    "find_baseline",
    "group_results",
    "mad_calibration_error",
    "mce",
    "mcnemar",
    "mean_corruption_error",
    "mean_flip_probability",
    "mean_flip_rate",
    "mean_top5_distance",
    "measure_stability",
    "negative_log_likelihood",
    "per_class_error",
    "pgd",
    "predict",
    "read_record",
    "relative_mce",
    "reliability",
    "rms_calibration_error",
    "robustness",
    "summarize",
    "sweep",
    "top_k_error",
    "wilson_interval",
    "worst_corruption",
    "write_record",
    "write_report",
]
