"""Links between network namespaces that delay, lose, reorder and throttle packets, made by a process of our own.

The kernel's ``netem`` would do it as well, but not every kernel has it. This needs root, and a kernel with namespaces
and TUN devices.
"""
