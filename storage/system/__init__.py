"""The engine's use of the operating system: locks, forks, system errors, LMDB environments, flushing."""
