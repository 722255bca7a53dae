"""From a NIR graph to one neuromorphic framework each: its native model, and what that model spiked."""
