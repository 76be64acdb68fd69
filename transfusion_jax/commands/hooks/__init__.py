"""What `transfusion train` does besides training: each file makes a `Hook` of the loop. See docs/extending.md."""
