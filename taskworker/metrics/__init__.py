"""Metrics of this process for Prometheus: what calls take, what is read on each scrape, and the HTTP endpoint.

Names follow Prometheus's conventions: ``taskworker_``, then what is measured, then its base unit. Labels have few
values: names of calls, status codes, workers, background work, and functions up to a limit. They never have users,
names of files or addresses of callers.

Nothing is measured, and the library of Prometheus is not loaded, until a process asks for it (``--metrics``).
"""
