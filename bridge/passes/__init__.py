"""Rewrites from one `bridge.graph.LayerGraph` to the next; each is one file and leaves its argument unchanged."""
