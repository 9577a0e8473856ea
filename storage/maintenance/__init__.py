"""Background work on a store: scrub, repair, heal, collect, rebuild. Each in a module of its own."""
