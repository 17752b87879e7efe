"""Timing of the stages."""
