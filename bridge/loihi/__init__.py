"""What a whole-number network asks of Intel's Loihi."""
