"""What a run says of itself: metrics, goodput, heartbeat, faults."""
