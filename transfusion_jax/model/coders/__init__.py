"""Patch coders, one a file: latents and a timestep to one vector per patch, and hidden states back to latents."""
