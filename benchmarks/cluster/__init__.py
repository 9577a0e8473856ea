"""The parts of the cluster suite."""
