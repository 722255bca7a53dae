"""From floating point to integers."""
