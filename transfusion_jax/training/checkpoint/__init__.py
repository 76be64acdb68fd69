"""Checkpoints: saving, restoring, and the proof that what is read is what was written."""
