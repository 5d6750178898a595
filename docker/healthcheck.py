#!/usr/bin/env python3
"""Docker's HEALTHCHECK: exit code 0 while the server would take a request."""

import os
import sys
import urllib.request

port = os.environ.get("TGWUI_PORT") or os.environ.get("SAGEMAKER_BIND_TO_PORT") or "5000"
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
try:
    opener.open(f"http://127.0.0.1:{port}/health/ready", timeout=4).close()
except OSError as error:
    sys.exit(f"not ready: {error}")
