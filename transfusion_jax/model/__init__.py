"""The transformer, its attention and its patch coders."""
