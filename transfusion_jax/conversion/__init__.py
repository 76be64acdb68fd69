"""Weights of others in, and ours out."""
