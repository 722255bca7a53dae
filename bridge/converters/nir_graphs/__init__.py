"""NIR graphs: this package's own networks, written and read, and other tools' networks."""
