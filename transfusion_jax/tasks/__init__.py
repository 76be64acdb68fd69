"""What is trained: losses, gradients and drawing of each kind of model."""
