"""Span attention, one implementation a file, and the blocks that they visit."""
