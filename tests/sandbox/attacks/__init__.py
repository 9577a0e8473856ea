"""Programs that try to get out of a sandbox, or to do harm from within; bundled and run there as a function."""
