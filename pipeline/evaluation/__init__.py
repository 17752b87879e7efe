"""Measuring rate and accuracy."""
