"""What a run reports: metrics, goodput, heartbeat, bad steps."""
