"""Evaluation suites, one a file."""
