"""Suites that measure a trained model."""
