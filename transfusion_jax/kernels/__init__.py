"""Kernels of our own: span attention, and the text head with its cross-entropy."""
