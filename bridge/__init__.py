"""From a QCFS-trained network to a spiking one that every neuromorphic framework runs spike for spike alike."""
