"""Captioned scenes of shapes, and edits of them."""
