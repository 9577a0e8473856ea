"""Ends with 0 if the process of this container answers /healthz (the path of HEALTH_URL), otherwise with 1."""

import os
import ssl
import sys
import urllib.request

url = os.environ.get("HEALTH_URL", "http://127.0.0.1:9464/healthz")
unverified = ssl.create_default_context()
unverified.check_hostname = False  # it is this container's own process, reached by its loopback
unverified.verify_mode = ssl.CERT_NONE
try:
    with urllib.request.urlopen(url, timeout=5, context=unverified) as answer:
        sys.exit(0 if answer.status == 200 else 1)
except OSError as error:
    print(f"{url}: {error}", file=sys.stderr)
    sys.exit(1)
