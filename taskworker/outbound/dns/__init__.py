"""DNS: the pool's own zone, forwarding and caching for all other names, and a server for both."""
