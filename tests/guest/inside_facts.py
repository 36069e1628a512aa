"""Runs in a guest: tells what Python and what kernel it runs on."""

import json
import platform
import socket
import sys

import numpy as np

facts = {"python": sys.version, "release": platform.release(), "name": socket.gethostname(), "numpy": np.__version__}
print(json.dumps(facts))
