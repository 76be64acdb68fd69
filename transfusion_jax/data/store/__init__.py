"""Prepared data: records, indexes and encodings in files."""
