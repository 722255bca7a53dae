"""The fast engine: the reference's spikes, in int8 arithmetic or floating point, in as little time as possible."""
