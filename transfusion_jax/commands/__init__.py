"""One file per subcommand of `transfusion`."""
