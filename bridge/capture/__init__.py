"""From a trained model, whatever its source, to a `bridge.graph.LayerGraph`. One file a source."""
