"""A regular package: its name is also that of a benchmark."""
