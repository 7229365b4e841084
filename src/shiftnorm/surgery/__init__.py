"""Putting norms into a model that exists already, provably: what changed, by how much, and back."""

from __future__ import annotations

from shiftnorm.surgery.checkpoint import read_checkpoint
from shiftnorm.surgery.constant import InstanceChannels
from shiftnorm.surgery.convert import convert, edits_of, insert, replace, revert
from shiftnorm.surgery.describe import Description, describe
from shiftnorm.surgery.fold import FoldReport, FoldRow, fold
from shiftnorm.surgery.norm_act import NormAct, norm_act
from shiftnorm.surgery.placements import PLACEMENTS, list_placements
from shiftnorm.surgery.recalibrate import Recalibrated, Recalibration, recalibrate
from shiftnorm.surgery.report import Movement, Report, Skipped
from shiftnorm.surgery.save import load, read_recipe, save
from shiftnorm.surgery.sites import Selector, Site, find_norms, select
from shiftnorm.surgery.source import build_model, list_sources, source_of
from shiftnorm.surgery.sync import SyncRow, sync, unsync
from shiftnorm.surgery.weights import LoadReport, load_weights

__all__ = [
    "PLACEMENTS",
    "Description",
    "FoldReport",
    "FoldRow",
    "InstanceChannels",
    "LoadReport",
    "Movement",
    "NormAct",
    "Recalibrated",
    "Recalibration",
    "Report",
    "Selector",
    "Site",
    "Skipped",
    "SyncRow",
    "build_model",
    "convert",
    "describe",
    "edits_of",
    "find_norms",
    "fold",
    "insert",
    "list_placements",
    "list_sources",
    "load",
    "load_weights",
    "norm_act",
    "read_checkpoint",
    "read_recipe",
    "recalibrate",
    "replace",
    "revert",
    "save",
    "select",
    "source_of",
    "sync",
    "unsync",
]
