"""What the engine takes from the operating system: locks, forks, errors of the machine, databases, flushing."""
