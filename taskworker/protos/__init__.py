"""Code generated from the contracts in ``protos/``."""
