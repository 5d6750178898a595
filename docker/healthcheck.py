#!/usr/bin/env python3
"""Docker's HEALTHCHECK: exit code 0 while the server would take a request."""

import os
import sys
import urllib.request

variables = ("HEALTHCHECK_PORT", "TGWUI_PORT", "SAGEMAKER_BIND_TO_PORT")
port = next(filter(None, map(os.environ.get, variables)), "5000")
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
try:
    opener.open(f"http://127.0.0.1:{port}/health/ready", timeout=4).close()
except OSError as error:
    sys.exit(f"not ready: {error}")
