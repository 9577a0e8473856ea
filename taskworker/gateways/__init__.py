"""Front doors for programs that speak another protocol. They use the client, or a store as any program may."""
