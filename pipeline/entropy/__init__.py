"""Entropy coding: integer tables and the rANS coder."""
