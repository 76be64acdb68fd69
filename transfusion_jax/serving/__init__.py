"""A web page and a small HTTP API on a trained model."""
