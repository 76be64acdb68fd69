"""The options of each command, one file per command. They are read before any heavy package is imported."""
