"""Running a layer graph: the ANN, the reference simulator, the fast engine, any NIR graph."""

from bridge._util.lazy import lazily

__getattr__, __dir__ = lazily(
    __name__, {"bridge.simulate.ann": ["activations"], "bridge.simulate.reference": ["simulate"]}
)
