"""Devices, the mesh, and where arrays live on it."""
