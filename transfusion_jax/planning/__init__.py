"""What a run will take before its machines are booked: memory, operations, traffic, time."""
