"""LightningModules, one file per problem."""

from shiftnorm.tasks.batches import Batches
from shiftnorm.tasks.classify import Classify

__all__ = ["Batches", "Classify"]
