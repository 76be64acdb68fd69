"""Image autoencoders, one a file: `from_name` finds one by its name, or gives None. See `AUTOENCODERS`."""
