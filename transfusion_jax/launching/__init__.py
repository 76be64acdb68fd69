"""Starting a command on many hosts: one file per target, and what they share."""
