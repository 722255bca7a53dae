"""From a NIR graph to one neuromorphic framework each: its native model, and what that model spiked.

Each backend is one folder of the same shape: `backend` is its class, `network` the native model where that is built by
hand, `neuron` the framework's exact neuron. Importing the folder does not import the framework.
"""
