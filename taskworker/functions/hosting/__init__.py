"""The worker's side of calls: runs bundles in sandboxes, and answers what functions ask for."""
