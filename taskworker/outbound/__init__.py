"""The world outside of the pool: outside APIs (egress), names (DNS) and the secrets that open them."""
