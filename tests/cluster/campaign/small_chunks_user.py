"""A user with chunks as small as those of :mod:`tests.cluster.campaign.small_chunks`: clients check sizes, too."""

from __future__ import annotations

import sys

from tests.cluster.campaign.small_chunks import lower_bound

if __name__ == "__main__":
    lower_bound()
    from tests.cluster.campaign.user import main

    main(*sys.argv[1:])
