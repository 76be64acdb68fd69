"""Checkpoints: saving, restoring, and verifying them by checksums."""
