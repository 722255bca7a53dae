"""What the tests share: the independent oracles, networks, faults, digits."""
