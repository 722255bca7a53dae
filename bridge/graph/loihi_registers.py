"""The widths of Loihi's registers, as Lava's bit-accurate models have them (lava-nc 0.10.0, lava.proc.lif.models).

A synaptic input is shifted left by `SHIFT` bits before it is added to the state. A whole-number network is held in
units of 1 in its graph, so its neurons' state, thresholds and biases are 64 times as large in the registers.

A layer that hears the images alone gets its whole input as bias currents, which are not shifted. It can hold numbers
64 times as large, if its thresholds are multiples of `UNIT`: those registers are always shifted.
"""

SHIFT = 6
UNIT = 2**SHIFT
WEIGHT_BITS = 8  # signed; under mixed sign the lowest bit of Dense's nine is dropped, so −128…127 in steps of 1
STATE_BITS = 24  # signed: membrane potential and current; the potential saturates, the current wraps
THRESHOLD_BITS = 17  # unsigned, before the shift
BIAS_MANTISSA_BITS = 13  # signed
BIAS_EXPONENT_BITS = 3  # unsigned: the bias is mantissa · 2^exponent, without a further shift

SMALLEST_WEIGHT, LARGEST_WEIGHT = -(2 ** (WEIGHT_BITS - 1)), 2 ** (WEIGHT_BITS - 1) - 1
LARGEST_STATE = 2 ** (STATE_BITS - 1) - 1
LARGEST_INPUT = 2 ** (STATE_BITS - 1 - SHIFT) - 1  # of a synaptic input, before the shift: 131 071
LARGEST_THRESHOLD = 2**THRESHOLD_BITS - 1  # before the shift: 131 071
LARGEST_BIAS_MANTISSA = 2 ** (BIAS_MANTISSA_BITS - 1) - 1
LARGEST_BIAS_EXPONENT = 2**BIAS_EXPONENT_BITS - 1
