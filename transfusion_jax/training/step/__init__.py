"""One training step: state, optimizer, and the guard against bad steps."""
