"""Training the zoo's networks with QCFS."""
