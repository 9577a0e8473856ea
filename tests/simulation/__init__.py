"""A pool, its workers, their disks, network and clock in one thread, all decided by one seed."""
