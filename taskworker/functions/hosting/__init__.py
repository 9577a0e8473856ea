"""The worker's side of calls: bundles to sandboxes, calls to reports, and what a function asks for meanwhile."""
