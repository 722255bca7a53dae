"""Running a layer graph: the ANN, the reference simulator, the fast engine, any NIR graph."""
