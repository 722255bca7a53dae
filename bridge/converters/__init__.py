"""From a trained model or a NIR file to a `bridge.graph.LayerGraph`, and back to files. One folder a source."""
