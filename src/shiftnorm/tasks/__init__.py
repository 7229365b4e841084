"""LightningModules, one file per problem."""

from shiftnorm.tasks.batches import Batches
from shiftnorm.tasks.classify import Classify
from shiftnorm.tasks.normalize import Normalize
from shiftnorm.tasks.objective import Objective

__all__ = ["Batches", "Classify", "Normalize", "Objective"]
