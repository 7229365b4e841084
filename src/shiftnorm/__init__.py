"""Normalization layers for distribution shift."""
