"""Snapshots and files as directories, mounted read-only with FUSE.

``nodes`` says what a mounted tree is made of, ``snapshot_tree`` and ``file_tree`` are the two kinds of trees, and
``blocks`` reads their content, ahead of programs that read in order. ``operations`` answers the kernel, ``mounting``
mounts.
"""
