"""The gRPC services: they translate requests into engine calls, and results into responses."""
