"""Drawn scenes with exact grades."""
