"""Attention kernels of our own, one file per accelerator, and the block ranges that they visit."""
