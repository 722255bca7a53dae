"""Holding backends against the reference and the ANN: which spikes differ, where, and why."""
