"""Where files are: paths and buckets, whole writes, locks, lines of JSON."""
