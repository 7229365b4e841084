"""Training by a recipe: data, network, loop, checkpoints, the run's folder and its record."""

from shiftnorm.fit.grid import Grid, compare_recipes
from shiftnorm.fit.record import TrainRecord, TrainResult
from shiftnorm.fit.stopping import Stopped
from shiftnorm.fit.training import train

__all__ = ["Grid", "Stopped", "TrainRecord", "TrainResult", "compare_recipes", "train"]
