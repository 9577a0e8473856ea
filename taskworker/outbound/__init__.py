"""What functions may reach outside the pool: outside APIs (egress), DNS names, and the secrets for both."""
