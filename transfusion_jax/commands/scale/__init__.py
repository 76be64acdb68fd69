"""The parts of `transfusion scale`."""
