"""Names: the pool's own zone, everything else forwarded and cached, and a DNS server in front of both."""
