"""The gRPC services: requests in, engine calls, responses out. No logic of storage lives here."""
