"""Drawing images and writing text with a trained model."""
